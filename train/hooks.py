"""What amex adds to mmengine's Runner: a retrieval validation, exact resuming, a history, progress."""

from __future__ import annotations

import json
import math
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import BaseLoop, Runner
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ..console import progress_bar
from .config import Train
from .data import Split
from .evaluate import evaluate_split, flat
from .hubs import remember
from .models import SpacesModel


def optimizers(runner: Runner) -> dict[str, OptimWrapper]:
    """Those of a run by name: of the encoders, and of networks that step by themselves."""
    wrapper = runner.optim_wrapper
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {"encoders": wrapper}


class RetrievalLoop(BaseLoop):
    """mmengine's validation: the whole split against itself, every caption and every clip."""

    def __init__(self, runner: Runner, dataloader: Split, evaluator: Any = None) -> None:
        super().__init__(runner, dataloader)

    def run(self) -> dict[str, float]:
        """The figures, by short names."""
        self.runner.call_hook("before_val")
        self.runner.call_hook("before_val_epoch")
        split: Split = self.dataloader  # type: ignore[assignment]
        model = self.runner.model.model
        if isinstance(model, SpacesModel) and model.hubs:
            remember(model, self.runner.train_dataloader.dataset)
        metrics = flat(evaluate_split(model, split))
        self.runner.call_hook("after_val_epoch", metrics=metrics)
        self.runner.call_hook("after_val")
        return metrics


class Reproducible(Hook):
    """Chance depends on seed and epoch alone, so that a resumed run goes on as if it had not stopped."""

    priority = "VERY_HIGH"

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def before_train_epoch(self, runner: Runner) -> None:
        torch.manual_seed(self.seed * 1_000_003 + runner.epoch * 1009 + runner.rank)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        runner.model.progress = runner.iter / runner.max_iters


class LearningRate(Hook):
    """Sets the learning rate before every step, from the step's number and the validations so far.

    The rate rises over the warmup. ``cosine`` lets it fall to 0 at the end of the run, ``plateau`` halves it. Nothing
    but the plateau is restored when a run is resumed: with more epochs, the rate is that of the longer schedule.
    """

    priority = "HIGHEST"  # mmengine logs the rate at VERY_HIGH

    def __init__(self, options: Train) -> None:
        self.options = options
        self.rates: list[float] = []  # of each group of parameters
        self.best, self.since, self.halvings = -math.inf, 0, 0

    def before_run(self, runner: Runner) -> None:
        self.rates = [group["lr"] for group in self.groups(runner)]

    @staticmethod
    def groups(runner: Runner) -> list[dict[str, Any]]:
        """Those of all optimizers.

        An adversary that went on at full rate while the encoders come to rest would leave them behind.
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
        """What the rates are multiplied by at a step, the first of which is 0, of so many."""
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
        kept = checkpoint["plateau"]
        self.best, self.since, self.halvings = kept["best"], kept["since"], kept["halvings"]


class Keep(Hook):
    """After every validation: last.pth to resume from, best.pth to use, a line of history.jsonl.

    last.pth is left out where it would take more than a tenth of the time: the run then resumes from an earlier one.

    mmengine's own CheckpointHook saves before the validation that moves the learning rate, and pickles objects.

    Args:
        described: what ``checkpoint.describe`` made.
        last: best.pth is the last checkpoint, and not the one with the best rsum.
    """

    priority = "LOWEST"

    def __init__(self, folder: Path, described: dict[str, Any], *, last: bool = False) -> None:
        self.folder, self.described, self.last = folder, described, last
        self.best = -1.0
        self.values: dict[str, list[float]] = defaultdict(list)
        self.steps, self.started = 0, time.monotonic()
        self.saved, self.cost = -math.inf, 0.0  # when last.pth was written, and the seconds that it took

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self.best = checkpoint["best"]
        for name, parameter in runner.model.named_parameters():
            parameter.grad = checkpoint["gradients"].get(name)
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        del checkpoint["message_hub"]  # holds objects, which are not read back
        checkpoint |= {"amex": self.described, "best": self.best}
        if "optimizer" in checkpoint:  # gradients are there between two steps, while some are added up
            own = runner.model.named_parameters()
            checkpoint["gradients"] = {name: p.grad.cpu() for name, p in own if p.grad is not None}

    def before_train_epoch(self, runner: Runner) -> None:
        if self.steps == 0:
            self.started = time.monotonic()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, torch.Tensor] | None = None
    ) -> None:
        for name, value in (outputs or {}).items():
            number = value.item()
            if name.startswith("loss") or not math.isnan(number):  # a batch without a concept has no mAP
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
        # Of equal ones the last has learned most; on few clips many are equal.
        better = self.last or metrics["rsum"] >= self.best
        self.best = max(self.best, metrics["rsum"])
        if better:
            self.save(runner, "best.pth", metrics, whole=False)
        begin = time.monotonic()
        if runner.epoch + runner.val_interval > runner.max_epochs or begin - self.saved >= 10 * self.cost:
            self.save(runner, "last.pth", metrics, whole=True)
            self.saved = time.monotonic()
            self.cost = self.saved - begin

    def save(self, runner: Runner, name: str, metrics: dict[str, float], *, whole: bool) -> None:
        """There whole, or not at all."""
        self.described["val"] = metrics
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        kept = {"save_optimizer": whole, "save_param_scheduler": False}
        runner.save_checkpoint(str(self.folder), f".{name}", meta=meta, by_epoch=False, **kept)
        os.replace(self.folder / f".{name}", self.folder / name)


class Bar(Hook):
    """Progress on standard error: steps, time left, the loss, the last validation."""

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
        said = f"epoch {runner.epoch + 1}/{runner.max_epochs}  {self.loss}{self.val}"
        self.bar.update(self.task, completed=runner.iter + 1, description=said)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        assert metrics is not None
        self.val = f"  val rsum {metrics['rsum']:.1f}"
        if not self.bar.console.is_terminal:
            self.bar.console.print(f"epoch {runner.epoch}/{runner.max_epochs}  {self.loss}{self.val}")

    def after_train(self, runner: Runner) -> None:
        self.bar.stop()
