"""From what a user calls a stream to its plan: windows of frames, objects, or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ...errors import AmexError
from .hub import plan_hub
from .networks import NETWORKS
from .objects import ALIASES, ObjectsPlan, plan_objects
from .own import plan_own
from .presets import plan_windows
from .settings import known
from .text import DEFAULT_MODELS, TextPlan, plan_text
from .timm_models import plan_timm
from .windows import WindowPlan

StreamPlan = WindowPlan | ObjectsPlan | TextPlan

# What can follow ``NAME=``, besides the names of networks: a kind and, after a colon, which of its many.
KINDS = {
    "mmdet": "objects by any MMDetection configuration, named or a file",
    "frames": "frames by any vision model of transformers, a directory or a name on the model hub",
    "video": "windows of frames by any video model of transformers, likewise",
    "clip": "frames by the vision tower of any CLIP, likewise, fed as CLIP4Clip does",
    "timm": "frames by any model of timm",
    "python": "windows of frames by a network of your own, which the function MODULE:FACTORY returns",
    "text": "captions by any transformers encoder: a directory, minilm, or a name on the model hub",
}

# On a CPU, windows and frames go one by one: nothing is gained by more, and memory is.
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
    """The plan of one stream.

    Args:
        name: in the store.
        network: a name that ``amex streams`` lists, or ``KIND:WHICH``.
        device: from ``encoders.choose_device``.
        weights: ``default``, a path, ``random:SEED``; of transformers models a directory or a name on the hub.
        options: as ``--set`` takes them.
        batch_size: windows or frames a batch; None for what suits the device.
        random_weights: for estimates: weights are drawn at random, and none are fetched. For a model that is not on
            this disk the usual one of its kind stands in.

    Raises:
        AmexError: naming the stream and what is unknown, out of range or not to be had.
    """
    kind, colon, which = network.partition(":")
    if not colon:
        known(network, [*NETWORKS, *ALIASES, *DEFAULT_MODELS], "stream")
    elif not which or kind not in KINDS:
        forms = ", ".join(f"{kind}:WHICH ({what})" for kind, what in KINDS.items())
        raise AmexError(f"stream {name}: unknown {network!r}; there is {forms}")
    elif kind not in ("mmdet", "timm") and weights != "default":
        raise AmexError(f"stream {name}: {network} names its weights already; leave out --weights {name}={weights}")
    on_gpu = device != "cpu"
    objects = kind == "mmdet" or network in ALIASES
    chosen = "text" if is_text(network) else "objects" if objects else "windows"
    if preset and (colon or chosen != "windows") and kind != "clip":
        takers = "the networks that `amex streams` lists and clip:MODEL"
        raise AmexError(f"stream {name}: presets are for {takers}, not for {network}; use --set")
    size = batch_size if batch_size and chosen != "text" else BATCH[chosen][on_gpu]
    common = {"precision": precision, "options": options, "batch_size": size}
    if chosen == "text":
        model = which or (DEFAULT_MODELS[network] if weights == "default" else weights)
        stand_in = random_weights and model != "minilm" and not Path(model).is_dir()
        return plan_text(name, model=model, random_weights=stand_in, **common)
    if kind == "python":
        return plan_own(name, factory=which, compiled=compiled, **common)
    absent = random_weights and not Path(which).is_dir()
    if kind in ("frames", "video"):
        return plan_hub(name, kind=kind, model=which, random_weights=absent, compiled=compiled, **common)
    if kind == "clip":
        network, weights = ("clip_vit_b32", "random:0") if absent else ("clip", which)
    elif random_weights:
        weights = "random:0"
    if kind == "timm":
        return plan_timm(name, model=which, weights=weights, compiled=compiled, **common)
    if chosen == "objects":
        return plan_objects(name, config=which or network, weights=weights, **common)
    return plan_windows(name, network=network, weights=weights, preset=preset, compiled=compiled, **common)


def is_text(network: str) -> bool:
    """Whether what ``--stream NAME=`` takes reads captions, and no video."""
    return network.partition(":")[0] == "text" or network in DEFAULT_MODELS


def by_kind(
    plans: Sequence[StreamPlan],
) -> tuple[tuple[WindowPlan | ObjectsPlan, ...], tuple[TextPlan, ...]]:
    """Those that look at frames, and those of text."""
    texts = tuple(plan for plan in plans if isinstance(plan, TextPlan))
    return tuple(plan for plan in plans if not isinstance(plan, TextPlan)), texts
