"""Defaults for the length, batch size and learning rate of a run, derived from the size of the training split."""

from __future__ import annotations

import math

from ..errors import plural
from .config import Config

# How often each pair is shown. In trials on sets of 290 to 7,200 clips, showing pairs twice as often made a model on
# fixed features overfit.
SHOWN = 15
# The minimum number of steps, for sets with few pairs.
STEPS = 60
# How many pairs with similar captions come in one batch.
SIMILAR = 8
# With fewer clips, validation cannot distinguish the checkpoints of a run: the last one is kept.
ENOUGH_TO_CHOOSE = 100


def resolve_auto(config: Config, *, pairs: int, an_epoch: int, to_choose: int) -> tuple[Config, str]:
    """Replace the options that are ``auto`` by values.

    Args:
        pairs: number of different pairs of a training clip and its caption.
        an_epoch: number of pairs in an epoch.
        to_choose: number of validation clips.

    Returns:
        The completed configuration, and a line that lists the chosen values; empty if no option was ``auto``.
    """
    data: dict[str, int] = {}
    train: dict[str, float | str] = {}
    notes: list[str] = []
    # Relations between objects are learned from scratch. They need small batches, hence many steps, at the full rate,
    # and negatives whose captions differ in little. For other models, grouping similar captions did not help.
    relations = config.model.wants_objects
    batch = config.data.batch_size
    if batch is None:
        least = 32 if relations else 64
        batch = data["batch_size"] = min(256, max(least, 1 << max(0, int(math.log2(max(1, pairs / 40 * least / 64))))))
        notes.append(f"batches of {batch}")
    if config.data.similar is None:
        data["similar"] = SIMILAR if relations else 0
        if data["similar"]:
            notes.append(f"{SIMILAR} of similar captions together")
    # If one pair remains, it joins the last batch.
    epochs, steps_an_epoch = config.train.epochs, max(1, math.ceil((an_epoch - 1) / batch))
    if epochs is None:
        epochs = train["epochs"] = max(math.ceil(SHOWN * pairs / an_epoch), math.ceil(STEPS / steps_an_epoch))
        notes.append(plural(epochs, "epoch"))
    if config.train.lr is None:
        train["lr"] = 1e-3 if relations else float(f"{1e-3 * min(1, (pairs / 7000) ** 0.4):.1g}")
        notes.append(f"learning rate {train['lr']:g}")
    if config.train.warmup is None:
        train["warmup"] = epochs * steps_an_epoch // 10
        notes.append(f"warmup of {train['warmup']} steps")
    if config.train.val_every is None:
        train["val_every"] = max(1, epochs // 10)
        every = plural(train["val_every"], "epoch")
        notes.append("validated each epoch" if train["val_every"] == 1 else f"validated every {every}")
    if config.train.keep is None:
        train["keep"] = "best" if to_choose >= ENOUGH_TO_CHOOSE else "last"
        notes.append(f"the {train['keep']} checkpoint kept")
    completed = config.model_copy(
        update={"data": config.data.model_copy(update=data), "train": config.train.model_copy(update=train)}
    )
    return completed, f"{plural(pairs, 'training pair')}: {', '.join(notes)}" if notes else ""
