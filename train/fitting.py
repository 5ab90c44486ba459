"""A training run: configuration, store and manifest to checkpoints, on mmengine's Runner."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from mmengine.dist import get_dist_info
from mmengine.hooks import EMAHook, Hook, SyncBuffersHook
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from ..errors import AmexError, first_line
from ..features import diff_specs, open_store
from ..manifests import read_manifest
from ..storage import write_json
from .batches import EpochSampler, PairBatches, SimilarCaptions, groups_of
from .captions import make_text
from .checkpoint import describe, learned_from, read_checkpoint
from .config import Config, Train
from .coverage import selection_warning, split_lines, training_warning
from .data import Split, collate, fingerprints, inputs, keep_in_memory
from .evaluate import parameters
from .hooks import Bar, Keep, LearningRate, Reproducible, RetrievalLoop
from .learner import Learner
from .models import SpacesModel, build_model
from .objective import Objective
from .schedule import settle
from .selection import choose_clips, refused_states
from .streams import choose_streams


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a run left behind.

    Attributes:
        splits: what of the training and validation clips took part, as in data.json.
    """

    best: Path
    epoch: int
    val: dict[str, float]
    parameters: int
    splits: dict[str, Any]


def fit(
    config: Config,
    *,
    store: Path,
    manifest: Path,
    work_dir: Path,
    resume: bool = False,
    strict: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """Trains a model and returns the checkpoint that ``train.keep`` names, best.pth.

    Under torchrun every process takes its share of each batch, with the negatives of all.

    Args:
        resume: go on after the last validation of a run in ``work_dir``; the numbers are those of a run that was never
            stopped.
        strict: clips and captions that failed or are empty are an error, instead of being left out.
        say: called with a line for people: what is left out, what is too little.

    Raises:
        AmexError: for anything missing or unfit, before the first step.
    """
    rank, world = _processes()
    opened, clips = open_store(store), read_manifest(manifest)
    first_says = say if rank == 0 else lambda line: None
    config = config.model_copy(update={"model": choose_streams(config.model, opened, first_says)})
    train_clips, val_clips = choose_clips(clips, config.data, str(manifest))
    text = make_text(opened, config, train_clips, manifest)
    seed = config.train.seed
    refuse = refused_states(strict)
    second = config.objective.denoise != "off"
    train = Split(opened, train_clips, config.model, config.data, text, seed=seed, second=second, refuse=refuse)
    val = Split(opened, val_clips, config.model, config.data, text, refuse=refuse)
    for split, name, use in ((train, config.data.train, "train"), (val, config.data.val, "choose a checkpoint")):
        if not split.pairs:
            left_out = f" ({split.coverage.caption_line})" if split.coverage.captions_left_out else ""
            raise AmexError(
                f"{manifest}: no clip of split {name!r} has a caption{left_out}: there is nothing to {use} on. Those "
                "of your own videos stand in captions.csv beside them (video,caption): amex manifest build folder"
            )
    # Validation first: it reads everything after each epoch while nothing else happens, and training reads ahead while
    # it computes. It is smaller, too, and so fits more often.
    keep_in_memory([val, train], config.data.memory_gb)
    splits = {
        "train": {"split": config.data.train, "warning": training_warning(len(train.with_captions))},
        "val": {"split": config.data.val, "warning": selection_warning(len(val.clips))},
    }
    for name, split in (("train", train), ("val", val)):
        splits[name]["coverage"] = dataclasses.asdict(split.coverage)
    config, settled = settle(config, pairs=len(train.pairs), an_epoch=len(train), to_choose=len(val.with_captions))
    splits["val"]["keep"] = config.train.keep
    if config.data.batch_size % world:
        raise AmexError(f"data.batch_size={config.data.batch_size} cannot be dealt to {world} processes evenly")
    for count, what in (
        (len(train), f"split {config.data.train!r} of {manifest}"),
        (config.data.batch_size, "a batch (data.batch_size)"),
    ):
        if count < 2 * world:
            raise AmexError(
                f"{what} has {count} {'pair' if count == 1 else 'pairs'} of a clip and a caption: training needs two "
                "or more a process, since a pair is ranked against others"
            )
    if config.train.amp not in ("auto", "off") and not torch.cuda.is_available():
        raise AmexError(f"train.amp={config.train.amp} needs a GPU; leave it at auto")
    built_for = inputs(opened, config, text)
    sources = {"store": str(store.resolve()), "manifest": str(manifest.resolve())}
    described = describe(
        config,
        fingerprints=fingerprints(opened, config.model),
        inputs=built_for,
        text=text,
        sources=sources,
        learned_from=learned_from(
            opened,
            config.model,
            {config.data.train: train_clips, config.data.val: val_clips},
            text.graphs or (text.concepts.graphs if text.concepts else None),
        ),
    )
    with only_run(work_dir) if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            _prepare(work_dir, described, resume)
            write_json(work_dir / "data.json", splits)
            for line in filter(None, (settled, *split_lines(splits))):
                say(line)
        if world > 1:
            torch.distributed.barrier()
        last = work_dir / "last.pth" if (work_dir / "last.pth").exists() else None
        torch.manual_seed(seed)
        model = build_model(config.model, built_for)
        model.start(text.vocabulary.words if text.vocabulary else ())
        model.standardize(train.sample_rows)
        for stream in model.probabilities:
            first_says(f"{stream} holds probabilities, most of them near 0: their log-odds are learned from")
        if isinstance(model, SpacesModel):
            model.make_room(len(train.clips), len(train.captions))
        objective = Objective(config.objective, model, built_for.concepts)
        learner = Learner(model, objective, encode_at_once=config.train.encode_at_once)
        count = parameters(model)
        keep = Keep(work_dir, described, last=config.train.keep == "last")
        hooks = [Reproducible(seed), LearningRate(config.train), keep, *([Bar()] if rank == 0 else [])]
        if config.train.ema:
            hooks.append(EMAHook("MomentumAnnealingEMA", momentum=1 - config.train.ema, gamma=10, update_buffers=True))
        if world > 1:
            hooks.append(SyncBuffersHook())
        loader = make_loader(config, train, world)
        # mmengine prints what it resumes from; standard output is the caller's.
        with errors_of_workers(loader), fast_products(), contextlib.redirect_stdout(sys.stderr):
            _runner(config, learner, loader, val, hooks, work_dir, last).train()
        if world > 1:  # nobody leaves while another still writes or waits
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        done = read_checkpoint(work_dir / "best.pth")
        return Fitted(
            best=work_dir / "best.pth",
            epoch=done["meta"]["epoch"],
            val=done["amex"]["val"],
            parameters=count,
            splits=splits,
        )


@contextlib.contextmanager
def errors_of_workers(loader: DataLoader) -> Iterator[None]:
    """Turns what torch makes of errors in a loader's processes into an AmexError of one line; ends the processes."""
    try:
        yield
    except AmexError as error:  # to whose message torch adds the worker's traceback
        if "DataLoader worker" not in str(error):
            raise
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise AmexError(
            f"a process that reads features ended early ({first_line(error)}): go on with --resume, and if memory is "
            "short, with a smaller data.workers or data.memory_gb"
        ) from error
    finally:
        # Left to the garbage collector, the pipes to them may be closed first, and torch waits 5 s for each.
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()


@contextlib.contextmanager
def fast_products() -> Iterator[None]:
    """Lets oneDNN multiply matrices of float32 on CPUs with AVX-512: on AMD's it is twice as fast as MKL.

    Not on CPUs with AMX, where the same setting rounds factors to bfloat16.
    """
    before = torch.get_float32_matmul_precision()
    can = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.10
    if can.get("avx512_f") and not can.get("amx_bf16") and not torch.cuda.is_available():
        torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def only_run(work_dir: Path) -> Iterator[None]:
    """Refuses a second run in one folder while the first is at work. A killed run holds nothing."""
    work_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work_dir / "run.lock", timeout=0):
            yield
    except Timeout as error:
        raise AmexError(f"another run is at work in {work_dir}: wait for it, or choose another --work-dir") from error


def _processes() -> tuple[int, int]:
    """This process's rank and how many there are; under torchrun they are introduced to each other.

    Raises:
        AmexError: if processes would have to share a GPU, which NCCL refuses.
    """
    if "RANK" not in os.environ:
        return 0, 1
    if not torch.distributed.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
            if here > gpus:
                raise AmexError(
                    f"{here} processes on this machine, {gpus} GPU{'s' if gpus > 1 else ''}: start as many as GPUs, or "
                    "CUDA_VISIBLE_DEVICES= for the CPU"
                )
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


# What a run that goes on must have in common with the one that began, and how an error calls a difference.
COMPARED = {"config": "another config", "fingerprints": "other fingerprints", "learned_from": "other data"}
# Of the configuration may differ how long it trains, and from where it reads the same numbers.
MAY_DIFFER = ("train.epochs", "train.warmup", "train.val_every", "data.memory_gb", "data.workers")


def _prepare(work_dir: Path, described: dict[str, Any], resume: bool) -> None:
    """Makes the folder of a run, or readies that of one that is to go on."""
    last, history = work_dir / "last.pth", work_dir / "history.jsonl"
    if last.exists() and not resume:
        raise AmexError(f"{work_dir} holds a run already: go on with --resume, or choose another --work-dir")
    if last.exists():
        there = read_checkpoint(last)
        for part, words in COMPARED.items():
            changed = [
                f"{field}: {old!r} then, {new!r} now"
                for field, old, new in diff_specs(there["amex"][part], described[part])
                if field not in MAY_DIFFER
            ]
            if changed:
                raise AmexError(
                    f"{last} was trained with {words}, so it cannot go on: {'; '.join(changed)}. Restore what it was "
                    "trained with, or choose another --work-dir"
                )
        reached, epochs = there["meta"]["epoch"], described["config"]["train"]["epochs"]
        if reached > epochs:
            raise AmexError(f"{last} is of epoch {reached} already: train.epochs may grow, not become {epochs}")
        lines = [line for line in history.read_text().splitlines() if json.loads(line)["epoch"] <= reached]
        history.write_text("".join(f"{line}\n" for line in lines))
    else:
        history.write_text("")
    write_json(work_dir / "config.json", described["config"])


def make_loader(config: Config, train: Split, world: int) -> DataLoader:
    """This process's share of the batches of every epoch, read ahead where features are not in memory."""
    arrange = SimilarCaptions(train, config.data.similar) if config.data.similar > 1 else None
    sampler = EpochSampler(groups_of(train), config.train.seed, *get_dist_info(), arrange=arrange)
    workers = 0 if train.in_memory else config.data.workers
    return DataLoader(
        train,
        batch_sampler=PairBatches(sampler, config.data.batch_size // world, drop_last=False),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Workers get a seed when they start: drawn from dropout's generator, it would change what that draws next.
        generator=torch.Generator(),
    )


_runs = itertools.count()


def _runner(
    config: Config,
    learner: Learner,
    loader: DataLoader,
    val: Split,
    hooks: list[Hook],
    work_dir: Path,
    last: Path | None,
) -> Runner:
    chosen = config.train
    return Runner(
        model=learner,
        work_dir=str(work_dir / "tensorboard"),
        train_dataloader=loader,
        val_dataloader=val,
        train_cfg={"by_epoch": True, "max_epochs": chosen.epochs, "val_interval": chosen.val_every},
        val_cfg={"type": RetrievalLoop},
        val_evaluator=[],
        optim_wrapper=make_optimizer(config, learner, torch.cuda.is_available()),
        default_hooks={"checkpoint": None, "param_scheduler": None, "logger": {"type": "LoggerHook", "interval": 10}},
        custom_hooks=hooks,
        launcher="none",  # processes know each other already, and the learner exchanges gradients by itself
        randomness={"seed": chosen.seed},
        visualizer={"type": "Visualizer", "vis_backends": [{"type": "TensorboardVisBackend"}]},
        log_level="ERROR",
        experiment_name=f"amex-{os.getpid()}-{next(_runs)}",
        load_from=None if last is None else str(last),
        resume=last is not None,
    )


def make_optimizer(config: Config, learner: Learner, on_gpu: bool) -> OptimWrapper | OptimWrapperDict:
    """What ``Learner.train_step`` takes: ``encoders`` and ``adversary`` where the latter steps by itself."""
    chosen = config.train
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[chosen.optimizer]
    optimizer = kind(parameter_groups(chosen, learner), lr=chosen.lr, fused=True)
    clip = None if chosen.clip_grad is None else {"max_norm": chosen.clip_grad}
    common: dict[str, Any] = {"clip_grad": clip, "accumulative_counts": chosen.accumulate}
    amp = chosen.amp if chosen.amp != "auto" else "bf16" if on_gpu else "off"
    if amp == "off":
        encoders = OptimWrapper(optimizer, **common)
    else:
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[amp]
        encoders = AmpOptimWrapper(optimizer=optimizer, dtype=dtype, **common)
    adversary = learner.objective.adversary
    if adversary is None or not adversary.steps_alone:
        return encoders
    own = torch.optim.Adam(adversary.parameters(), lr=config.objective.adversary_lr, betas=(0.5, 0.999))
    return OptimWrapperDict(encoders=encoders, adversary=OptimWrapper(own))


def parameter_groups(chosen: Train, learner: Learner) -> list[dict[str, Any]]:
    """The learned parameters by learning rate and weight decay, as torch's optimizers take them; no group is empty.

    Only parameters of two axes or more decay: the weights of linear maps and convolutions, embeddings. Biases, the
    scales of norms and a learned temperature do not, since a value near zero is no simpler model.
    """
    slow, share = learner.model.slow_parameters()
    apart = {id(parameter) for parameter in slow}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {
        (is_slow, decays): {
            "params": [],
            "lr": chosen.lr * (share if is_slow else 1.0),
            "weight_decay": chosen.weight_decay if decays else 0.0,
        }
        for is_slow in (False, True)
        for decays in (True, False)
    }
    for parameter in learner.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in apart, parameter.ndim > 1]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
