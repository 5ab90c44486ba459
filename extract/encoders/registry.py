"""From what a user calls a stream to its plan: windows of frames, objects, or text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ...errors import AmexError
from .networks import NETWORKS
from .objects import ALIASES, ObjectsPlan, plan_objects
from .presets import WindowPlan, plan_windows
from .settings import known
from .text import DEFAULT_MODELS, TextPlan, plan_text

StreamPlan = WindowPlan | ObjectsPlan | TextPlan

# What can follow ``NAME=``, besides the names of networks: a kind and, after a colon, which of its many.
KINDS = {
    "mmdet": "objects by any MMDetection configuration, named or a file",
    "clip": "frames by the vision tower of any CLIP, a directory or a name on the model hub",
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
    elif kind != "mmdet" and weights != "default":
        raise AmexError(f"stream {name}: {network} names its weights already; leave out --weights {name}={weights}")
    on_gpu = device != "cpu"
    objects = kind == "mmdet" or network in ALIASES
    chosen = "text" if is_text(network) else "objects" if objects else "windows"
    if preset and chosen != "windows":
        raise AmexError(f"stream {name}: presets are for streams of windows, not for {chosen}; use --set")
    if chosen == "text":
        model = which or (DEFAULT_MODELS[network] if weights == "default" else weights)
        size = BATCH["text"][on_gpu]
        stand_in = random_weights and model != "minilm" and not Path(model).is_dir()
        common = {"precision": precision, "options": options, "batch_size": size}
        return plan_text(name, model=model, random_weights=stand_in, **common)
    if random_weights:
        if kind == "clip" and not Path(which).is_dir():
            network = kind = "clip_vit_b32"
        if kind != "clip":
            weights = "random:0"
    size = batch_size or BATCH[chosen][on_gpu]
    common = {"precision": precision, "options": options, "batch_size": size}
    if chosen == "objects":
        return plan_objects(name, config=which or network, weights=weights, **common)
    if kind == "clip":
        return plan_windows(name, network="clip", weights=which, preset=preset, compiled=compiled, **common)
    return plan_windows(name, network=network, weights=weights, preset=preset, compiled=compiled, **common)


def is_text(network: str) -> bool:
    """Whether what ``--stream NAME=`` takes reads captions, and no video."""
    return network.partition(":")[0] == "text" or network in DEFAULT_MODELS


def by_kind(plans: Sequence[StreamPlan]) -> tuple[tuple[WindowPlan | ObjectsPlan, ...], tuple[TextPlan, ...]]:
    """Those that look at frames, and those of text."""
    texts = tuple(plan for plan in plans if isinstance(plan, TextPlan))
    return tuple(plan for plan in plans if not isinstance(plan, TextPlan)), texts
