"""Extensions of mmengine's Runner: retrieval validation, exact resuming, history, progress bar."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ..console import progress_bar
from ..errors import needs
from .config import TrainOptions
from .data import Split
from .evaluate import evaluate_split, short_figures
from .hubs import store_neighbours
from .models import SpacesModel

with needs("train", "training"):
    from mmengine.hooks import Hook
    from mmengine.optim import OptimWrapper, OptimWrapperDict
    from mmengine.runner import BaseLoop, Runner


def optimizers(runner: Runner) -> dict[str, OptimWrapper]:
    """Return the optimizers of a run by name: of the encoders, and of the adversary if it has its own step."""
    wrapper = runner.optim_wrapper
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {"encoders": wrapper}


class RetrievalLoop(BaseLoop):
    """Validation by retrieval: ranks all captions and all clips of the split."""

    def __init__(self, runner: Runner, dataloader: Split, evaluator: Any = None) -> None:
        super().__init__(runner, dataloader)

    def run(self) -> dict[str, float]:
        """Return the figures by their short names."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        split: Split = self.dataloader  # type: ignore[assignment]
        model = self.runner.model.model
        if isinstance(model, SpacesModel) and model.hubs:
            store_neighbours(model, self.runner.train_dataloader.dataset)
        metrics = short_figures(evaluate_split(model, split))
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics


class SeedEpochs(Hook):
    """Seeds each epoch from the run's seed and the epoch number, so that a resumed run equals an uninterrupted one."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_epoch(self, runner: Runner) -> None:
        torch.manual_seed(self.seed * 1_000_003 + runner.epoch * 1009 + runner.rank)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        runner.model.progress = runner.iter / runner.max_iters


class LearningRate(Hook):
    """Sets the learning rate before every step, from the step number and the validations so far.

    The rate rises during warmup. ``cosine`` lowers it to 0 at the end of the run, ``plateau`` halves it. Resuming
    restores only the state of the plateau: with more epochs, the rate follows the longer schedule.
    """

    priority = "HIGHEST"  # mmengine logs the rate at VERY_HIGH

    def __init__(self, options: TrainOptions) -> None:
        self.options = options
        self.rates: list[float] = []  # initial rate of each parameter group
        self.best, self.since, self.halvings = -math.inf, 0, 0

    def before_run(self, runner: Runner) -> None:
        self.rates = [group["lr"] for group in self.groups(runner)]

    @staticmethod
    def groups(runner: Runner) -> list[dict[str, Any]]:
        """Return the parameter groups of all optimizers.

        The adversary follows the schedule too: at the full rate it would outrun encoders that have slowed down.
        """
        return [group for wrapper in optimizers(runner).values() for group in wrapper.param_groups]

    def before_train(self, runner: Runner) -> None:
        encoders = optimizers(runner)["encoders"]
        encoders.initialize_count_status(runner.model, runner.iter, runner.max_iters)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        factor = self.factor(runner.iter, runner.max_iters)
        for group, rate in zip(self.groups(runner), self.rates, strict=True):
            group["lr"] = rate * factor

    def factor(self, step: int, steps: int) -> float:
        """Return the factor of the rates at a step, counted from 0, of ``steps``."""
        factor, last = 0.5**self.halvings, self.options.warmup - 1
        if step < last:
            factor *= 1e-3 + (1 - 1e-3) * step / last
        if self.options.schedule == "cosine":
            factor *= (1 + math.cos(math.pi * step / steps)) / 2
        return factor

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        assert metrics is not None
        if metrics["rsum"] > self.best:
            self.best, self.since = metrics["rsum"], runner.epoch
        elif self.options.schedule == "plateau" and runner.epoch - self.since >= self.options.patience:
            self.halvings, self.since = self.halvings + 1, runner.epoch

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        checkpoint["plateau"] = {"best": self.best, "since": self.since, "halvings": self.halvings}

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        plateau = checkpoint["plateau"]
        self.best, self.since, self.halvings = plateau["best"], plateau["since"], plateau["halvings"]


class SaveCheckpoints(Hook):
    """Writes last.pth (to resume), best.pth (to use) and a line of history.jsonl after every validation.

    last.pth is skipped if writing would take more than a tenth of the time; the run then resumes from an earlier one.

    mmengine's CheckpointHook saves before the validation that changes the learning rate, and pickles objects.

    Args:
        metadata: the result of ``checkpoint_metadata``.
        last: save the last checkpoint as best.pth, instead of the one with the best rsum.
    """

    priority = "LOWEST"

    def __init__(self, folder: Path, metadata: dict[str, Any], *, last: bool = False) -> None:
        self.folder, self.metadata, self.last = folder, metadata, last
        self.best = -1.0
        self.values: dict[str, list[float]] = defaultdict(list)
        self.steps, self.started = 0, time.monotonic()
        self.saved, self.cost = -math.inf, 0.0  # when last.pth was written, and how many seconds it took

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.best = checkpoint["best"]
        for name, parameter in runner.model.named_parameters():
            parameter.grad = checkpoint["gradients"].get(name)
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        del checkpoint["message_hub"]  # it holds objects, which checkpoints must not contain
        checkpoint |= {"amex": self.metadata, "best": self.best}
        if "optimizer" in checkpoint:  # between steps, gradients exist while they are accumulated
            named = runner.model.named_parameters()
            checkpoint["gradients"] = {name: p.grad.cpu() for name, p in named if p.grad is not None}

    def before_train_epoch(self, runner: Runner) -> None:
        if self.steps == 0:
            self.started = time.monotonic()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, torch.Tensor] | None = None
    ) -> None:
        for name, value in (outputs or {}).items():
            number = value.item()
            if name.startswith("loss") or not math.isnan(number):  # without concepts, a batch's mAP is NaN
                self.values[name].append(number)
        self.steps += 1

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        assert metrics is not None
        if runner.rank:
            return
        entry = {
            "epoch": runner.epoch,
            "lr": optimizers(runner)["encoders"].get_lr()["lr"][0],
            "seconds": round(time.monotonic() - self.started, 2),
            "train": {name: sum(values) / len(values) for name, values in self.values.items()},
            "val": metrics,
        }
        with (self.folder / "history.jsonl").open("a") as handle:
            handle.write(json.dumps(entry) + "\n")
        self.values.clear()
        self.steps = 0
        # Of equal results the last counts: with few clips many are equal, and later ones are trained longer.
        better = self.last or metrics["rsum"] >= self.best
        self.best = max(self.best, metrics["rsum"])
        if better:
            self.save(runner, "best.pth", metrics, resumable=False)
        begin = time.monotonic()
        if runner.epoch + runner.val_interval > runner.max_epochs or begin - self.saved >= 10 * self.cost:
            self.save(runner, "last.pth", metrics, resumable=True)
            self.saved = time.monotonic()
            self.cost = self.saved - begin

    def save(self, runner: Runner, name: str, metrics: dict[str, float], *, resumable: bool) -> None:
        """Write a checkpoint atomically, with the optimizer's state if it is resumable."""
        self.metadata["val"] = metrics
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        parts = {"save_optimizer": resumable, "save_param_scheduler": False}
        runner.save_checkpoint(str(self.folder), f".{name}", meta=meta, by_epoch=False, **parts)
        os.replace(self.folder / f".{name}", self.folder / name)


class ProgressBar(Hook):
    """Shows progress on standard error: steps, remaining time, loss, last validation."""

    priority = "VERY_LOW"

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = progress_bar(*columns)
        self.loss, self.val = "", ""

    def before_train(self, runner: Runner) -> None:
        self.bar.start()
        self.task = self.bar.add_task("training", total=runner.max_iters, completed=runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, torch.Tensor] | None = None
    ) -> None:
        self.loss = f"loss {outputs['loss'].item():.3f}" if outputs else ""
        description = f"epoch {runner.epoch + 1}/{runner.max_epochs}  {self.loss}{self.val}"
        self.bar.update(self.task, completed=runner.iter + 1, description=description)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        assert metrics is not None
        self.val = f"  val rsum {metrics['rsum']:.1f}"
        if not self.bar.console.is_terminal:
            self.bar.console.print(f"epoch {runner.epoch}/{runner.max_epochs}  {self.loss}{self.val}")

    def after_train(self, runner: Runner) -> None:
        self.bar.stop()
