"""Make the plan of a stream from its name on the command line: windows of frames, objects, or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ...errors import AmexError
from .hub import plan_hub
from .kinds import ALIASES, DEFAULT_MODELS, check_network, is_text
from .objects import ObjectsPlan, plan_objects
from .own import plan_own
from .presets import plan_windows
from .text import TextPlan, plan_text
from .timm_models import plan_timm
from .windows import WindowPlan

StreamPlan = WindowPlan | ObjectsPlan | TextPlan

# Default batch sizes on a CPU and on a GPU. On a CPU, larger batches of windows cost memory and are not faster.
BATCH = {"windows": (1, 16), "objects": (1, 4), "text": (32, 256)}


def plan_stream(
    name: str,
    network: str,
    *,
    device: str,
    precision: str,
    weights: str = "default",
    preset: str | None = None,
    options: Mapping[str, str] = MappingProxyType({}),
    compiled: bool = False,
    batch_size: int | None = None,
    random_weights: bool = False,
) -> StreamPlan:
    """Plan one stream.

    Args:
        name: of the stream in the store.
        network: a name that ``amex streams`` lists, or ``KIND:WHICH``.
        device: from ``encoders.choose_device``.
        precision: from ``encoders.choose_precision``.
        weights: ``default``, a path or ``random:SEED``; for transformers models a directory or a name on the hub.
        preset: a key of PRESETS; None for the network's default.
        options: options of ``--set``, values as text.
        compiled: whether to use ``torch.compile``.
        batch_size: windows or frames per batch; None uses the default of the device.
        random_weights: draw random weights and download nothing, for estimates. A model of the usual size replaces a
            model that is not on this disk.

    Raises:
        AmexError: if the network cannot be loaded, or a name or option is unknown or out of range.
    """
    kind, colon, which = network.partition(":")
    check_network(name, network)
    if colon and kind not in ("mmdet", "timm") and weights != "default":
        raise AmexError(f"stream {name}: {network} already names its weights; remove --weights {name}={weights}")
    on_gpu = device != "cpu"
    objects = kind == "mmdet" or network in ALIASES
    chosen = "text" if is_text(network) else "objects" if objects else "windows"
    if preset and (colon or chosen != "windows") and kind != "clip":
        supported = "the networks that `amex streams` lists and for clip:MODEL"
        raise AmexError(f"stream {name}: presets exist only for {supported}; for {network}, use --set")
    size = batch_size if batch_size and chosen != "text" else BATCH[chosen][on_gpu]
    common = {"precision": precision, "options": options, "batch_size": size}
    if chosen == "text":
        model = which or (DEFAULT_MODELS[network] if weights == "default" else weights)
        placeholder = random_weights and model != "minilm" and not Path(model).is_dir()
        return plan_text(name, model=model, random_weights=placeholder, **common)
    if kind == "python":
        return plan_own(name, factory=which, compiled=compiled, **common)
    placeholder = random_weights and not Path(which).is_dir()
    if kind in ("frames", "video"):
        return plan_hub(name, kind=kind, model=which, random_weights=placeholder, compiled=compiled, **common)
    if kind == "clip":
        network, weights = ("clip_vit_b32", "random:0") if placeholder else ("clip", which)
    elif random_weights:
        weights = "random:0"
    if kind == "timm":
        return plan_timm(name, model=which, weights=weights, compiled=compiled, **common)
    if chosen == "objects":
        return plan_objects(name, config=which or network, weights=weights, **common)
    return plan_windows(name, network=network, weights=weights, preset=preset, compiled=compiled, **common)


def split_plans(
    plans: Sequence[StreamPlan],
) -> tuple[tuple[WindowPlan | ObjectsPlan, ...], tuple[TextPlan, ...]]:
    """Split plans into those of frames and those of text."""
    texts = tuple(plan for plan in plans if isinstance(plan, TextPlan))
    return tuple(plan for plan in plans if not isinstance(plan, TextPlan)), texts
