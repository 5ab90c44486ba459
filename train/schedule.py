"""How long, in which batches and how fast to learn, where a configuration leaves it to the size of the set."""

from __future__ import annotations

import math

from .config import Config

# How often each pair is shown. Trials on sets of 290 to 7,200 clips: with twice as many a model of features that are
# not learned begins to know its training clips by heart.
SHOWN = 15
# The fewest steps, for sets of few pairs.
STEPS = 60
# Of similar captions so many come in one batch.
SIMILAR = 8
# Fewer clips do not tell one checkpoint from another of the same run: its last one is kept.
ENOUGH_TO_CHOOSE = 100


def settle(config: Config, *, pairs: int, an_epoch: int, to_choose: int) -> tuple[Config, str]:
    """The configuration without what is left open, and a line that says what these became; empty where there was none.

    Args:
        pairs: different pairs of a training clip and a caption of it.
        an_epoch: how many of them an epoch shows.
        to_choose: clips of the split that chooses the checkpoint.
    """
    data: dict[str, int] = {}
    train: dict[str, float | str] = {}
    said: list[str] = []
    # What an object does to another is learned from scratch: small batches, so many steps, at the full rate. It is
    # learned from captions that agree in all else; elsewhere to bring these together did not help.
    relations = config.model.wants_objects
    batch = config.data.batch_size
    if batch is None:
        least = 32 if relations else 64
        batch = data["batch_size"] = min(256, max(least, 1 << max(0, int(math.log2(max(1, pairs / 40 * least / 64))))))
        said.append(f"batches of {batch}")
    if config.data.similar is None:
        data["similar"] = SIMILAR if relations else 0
        if data["similar"]:
            said.append(f"{SIMILAR} of similar captions together")
    # A single pair left over joins the last batch.
    epochs, steps_an_epoch = config.train.epochs, max(1, math.ceil((an_epoch - 1) / batch))
    if epochs is None:
        epochs = train["epochs"] = max(math.ceil(SHOWN * pairs / an_epoch), math.ceil(STEPS / steps_an_epoch))
        said.append(f"{epochs} epochs")
    if config.train.lr is None:
        train["lr"] = 1e-3 if relations else float(f"{1e-3 * min(1, (pairs / 7000) ** 0.4):.1g}")
        said.append(f"learning rate {train['lr']:g}")
    if config.train.warmup is None:
        train["warmup"] = epochs * steps_an_epoch // 10
        said.append(f"warmup of {train['warmup']} steps")
    if config.train.val_every is None:
        train["val_every"] = max(1, epochs // 10)
        said.append(
            f"validated every {train['val_every']} epochs" if train["val_every"] > 1 else "validated each epoch"
        )
    if config.train.keep is None:
        train["keep"] = "best" if to_choose >= ENOUGH_TO_CHOOSE else "last"
        said.append(f"the {train['keep']} checkpoint kept")
    settled = config.model_copy(
        update={"data": config.data.model_copy(update=data), "train": config.train.model_copy(update=train)}
    )
    return settled, f"{pairs:,} pairs to learn from: {', '.join(said)}" if said else ""
