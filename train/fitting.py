"""Train a model with mmengine's Runner: from configuration, store and manifest to checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader

from ..errors import AmexError, first_line, needs, plural
from ..features import diff_specs, open_store
from ..manifests import read_manifest
from ..storage import write_json
from .api import FitResult
from .batches import EpochSampler, PairBatches, SimilarCaptions, partner_groups
from .captions import make_text
from .checkpoint import checkpoint_metadata, learned_from, read_checkpoint
from .config import Config, TrainOptions
from .coverage import selection_warning, split_lines, training_warning
from .data import Split, collate, fingerprints, inputs, keep_in_memory
from .evaluate import count_parameters
from .hooks import LearningRate, ProgressBar, RetrievalLoop, SaveCheckpoints, SeedEpochs
from .learner import Learner
from .models import SpacesModel, build_model
from .objective import Objective
from .schedule import resolve_auto
from .selection import choose_clips, refused_states
from .streams import choose_streams

with needs("train", "training"):
    from mmengine.dist import get_dist_info
    from mmengine.hooks import EMAHook, Hook, SyncBuffersHook
    from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
    from mmengine.runner import Runner


def fit(
    config: Config,
    *,
    store: Path,
    manifest: Path,
    work_dir: Path,
    resume: bool = False,
    strict: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Train a model and write its checkpoints to ``work_dir``.

    Under torchrun, each process computes a share of each batch, with the negatives of the whole batch.

    Args:
        config: the configuration; ``auto`` values and unnamed streams are filled in.
        store: the features.
        manifest: the clips with captions and splits.
        work_dir: folder of the run; it must be new unless ``resume`` is set.
        resume: continue a run in ``work_dir`` after its last checkpoint. The result equals that of an uninterrupted
            run.
        strict: treat failed and empty clips and captions as errors instead of leaving them out.
        quiet: show no progress.
        say: receives lines for the user: coverage, choices, warnings.

    Returns:
        The checkpoint that ``train.keep`` selects.

    Raises:
        AmexError: if the data or the configuration cannot be used; raised before the first step.
    """
    rank, world = _processes()
    opened, clips = open_store(store), read_manifest(manifest)
    say_once = say if rank == 0 else lambda line: None
    config = config.model_copy(update={"model": choose_streams(config.model, opened, say_once)})
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
                f"{manifest}: no clip of split {name!r} has a caption{left_out}, so there is nothing to {use} on. Put "
                "captions of your own videos in captions.csv beside them (video,caption): amex manifest build folder"
            )
    # Validation first: it reads everything after each epoch while nothing else runs, whereas training prefetches. It
    # is also smaller, so it fits more often.
    keep_in_memory([val, train], config.data.memory_gb)
    splits = {
        "train": {"split": config.data.train, "warning": training_warning(len(train.with_captions))},
        "val": {"split": config.data.val, "warning": selection_warning(len(val.clips))},
    }
    for name, split in (("train", train), ("val", val)):
        splits[name]["coverage"] = dataclasses.asdict(split.coverage)
    config, auto_line = resolve_auto(
        config, pairs=len(train.pairs), an_epoch=len(train), to_choose=len(val.with_captions)
    )
    splits["val"]["keep"] = config.train.keep
    if config.data.batch_size % world:
        raise AmexError(
            f"data.batch_size={config.data.batch_size} is not divisible by the number of processes ({world})"
        )
    for count, what in (
        (len(train), f"split {config.data.train!r} of {manifest}"),
        (config.data.batch_size, "a batch (data.batch_size)"),
    ):
        if count < 2 * world:
            raise AmexError(
                f"{what} has {count} {'pair' if count == 1 else 'pairs'} of a clip and a caption: training needs two "
                "or more pairs in each process, since a pair is ranked against others"
            )
    if config.train.amp not in ("auto", "off") and not torch.cuda.is_available():
        raise AmexError(f"train.amp={config.train.amp} needs a GPU; leave it at auto")
    built_for = inputs(opened, config, text)
    sources = {"store": str(store.resolve()), "manifest": str(manifest.resolve())}
    metadata = checkpoint_metadata(
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
    with lock_run(work_dir) if rank == 0 else contextlib.nullcontext():
        if rank == 0:
            _prepare(work_dir, metadata, resume)
            write_json(work_dir / "data.json", splits)
            for line in filter(None, (auto_line, *split_lines(splits))):
                say(line)
        if world > 1:
            torch.distributed.barrier()
        last = work_dir / "last.pth" if (work_dir / "last.pth").exists() else None
        torch.manual_seed(seed)
        model = build_model(config.model, built_for)
        model.start(text.vocabulary.words if text.vocabulary else ())
        model.standardize(train.sample_rows)
        for stream in model.probabilities:
            say_once(f"{stream} holds probabilities, most of them near 0: the model reads their log-odds")
        if isinstance(model, SpacesModel):
            model.allocate_neighbours(len(train.clips), len(train.captions))
        objective = Objective(config.objective, model, built_for.concepts)
        learner = Learner(model, objective, encode_at_once=config.train.encode_at_once)
        count = count_parameters(model)
        checkpoints = SaveCheckpoints(work_dir, metadata, last=config.train.keep == "last")
        hooks = [
            SeedEpochs(seed),
            LearningRate(config.train),
            checkpoints,
            *([ProgressBar()] if rank == 0 and not quiet else []),
        ]
        if config.train.ema:
            hooks.append(EMAHook("MomentumAnnealingEMA", momentum=1 - config.train.ema, gamma=10, update_buffers=True))
        if world > 1:
            hooks.append(SyncBuffersHook())
        loader = make_loader(config, train, world)
        # mmengine prints when it resumes. Standard output belongs to the caller.
        with convert_worker_errors(loader), fast_matmul(), contextlib.redirect_stdout(sys.stderr):
            _runner(config, learner, loader, val, hooks, work_dir, last).train()
        if world > 1:  # no process may end while another still writes or waits
            torch.distributed.barrier()
            torch.distributed.destroy_process_group()
        saved = read_checkpoint(work_dir / "best.pth")
        return FitResult(
            best=work_dir / "best.pth",
            epoch=saved["meta"]["epoch"],
            val=saved["amex"]["val"],
            parameters=count,
            splits=splits,
        )


@contextlib.contextmanager
def convert_worker_errors(loader: DataLoader) -> Iterator[None]:
    """Convert errors of a loader's worker processes into an AmexError of one line; stop the workers on exit."""
    try:
        yield
    except AmexError as error:  # torch appends the worker's traceback to the message
        if "DataLoader worker" not in str(error):
            raise
        raise type(error)(str(error).strip().splitlines()[-1].partition(": ")[2]) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise AmexError(
            f"a process that reads features ended early ({first_line(error)}): continue with --resume; if memory is "
            "short, reduce data.workers or data.memory_gb"
        ) from error
    finally:
        # If the garbage collector closes their pipes first, torch waits 5 s for each worker.
        if loader._iterator is not None:
            loader._iterator._shutdown_workers()


@contextlib.contextmanager
def fast_matmul() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices on CPUs with AVX-512; on AMD it is twice as fast as MKL.

    CPUs with AMX are excluded: there, the same setting rounds the factors to bfloat16.
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
def lock_run(work_dir: Path) -> Iterator[None]:
    """Refuse a second run in the same folder while the first is active. A killed run leaves no lock."""
    work_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(work_dir / "run.lock", timeout=0):
            yield
    except Timeout as error:
        raise AmexError(f"another run is active in {work_dir}: wait for it, or choose another --work-dir") from error


def _processes() -> tuple[int, int]:
    """Return the rank of this process and the number of processes; initialise torch.distributed under torchrun.

    Raises:
        AmexError: if processes would share a GPU, which NCCL refuses.
    """
    if "RANK" not in os.environ:
        return 0, 1
    if not torch.distributed.is_initialized():
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            local, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
            if local > gpus:
                raise AmexError(
                    f"{plural(local, 'process')} on this machine, {plural(gpus, 'GPU')}: start one process per GPU, "
                    "or set CUDA_VISIBLE_DEVICES= to use the CPU"
                )
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


# Metadata that must be equal to resume a run, and how an error names a difference.
COMPARED = {"config": "another config", "fingerprints": "other fingerprints", "learned_from": "other data"}
# Options that may differ: duration, and how the same features are read.
MAY_DIFFER = ("train.epochs", "train.warmup", "train.val_every", "data.memory_gb", "data.workers")


def _prepare(work_dir: Path, metadata: dict[str, Any], resume: bool) -> None:
    """Create the folder of a run, or check and prepare it for resuming."""
    last, history = work_dir / "last.pth", work_dir / "history.jsonl"
    if last.exists() and not resume:
        raise AmexError(f"{work_dir} already holds a run: continue it with --resume, or choose another --work-dir")
    if last.exists():
        previous = read_checkpoint(last)
        for part, words in COMPARED.items():
            changed = [
                f"{field}: {old!r} then, {new!r} now"
                for field, old, new in diff_specs(previous["amex"][part], metadata[part])
                if field not in MAY_DIFFER
            ]
            if changed:
                raise AmexError(
                    f"{last} was trained with {words}, so it cannot be resumed: {'; '.join(changed)}. Restore the "
                    "original, or choose another --work-dir"
                )
        reached, epochs = previous["meta"]["epoch"], metadata["config"]["train"]["epochs"]
        if reached > epochs:
            raise AmexError(f"{last} is of epoch {reached} already: train.epochs={epochs} is below it")
        lines = [line for line in history.read_text().splitlines() if json.loads(line)["epoch"] <= reached]
        history.write_text("".join(f"{line}\n" for line in lines))
    else:
        history.write_text("")
    write_json(work_dir / "config.json", metadata["config"])


def make_loader(config: Config, train: Split, world: int) -> DataLoader:
    """Return the loader of this process's share of the batches; it prefetches features that are not in memory."""
    arrange = SimilarCaptions(train, config.data.similar) if config.data.similar > 1 else None
    sampler = EpochSampler(partner_groups(train), config.train.seed, *get_dist_info(), arrange=arrange)
    workers = 0 if train.in_memory else config.data.workers
    return DataLoader(
        train,
        batch_sampler=PairBatches(sampler, config.data.batch_size // world, drop_last=False),
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Workers draw a seed when they start. From the default generator, that would change the dropout that follows.
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
    options = config.train
    return Runner(
        model=learner,
        work_dir=str(work_dir / "tensorboard"),
        train_dataloader=loader,
        val_dataloader=val,
        train_cfg={"by_epoch": True, "max_epochs": options.epochs, "val_interval": options.val_every},
        val_cfg={"type": RetrievalLoop},
        val_evaluator=[],
        optim_wrapper=make_optimizer(config, learner, torch.cuda.is_available()),
        default_hooks={"checkpoint": None, "param_scheduler": None, "logger": {"type": "LoggerHook", "interval": 10}},
        custom_hooks=hooks,
        launcher="none",  # processes are connected already, and the learner reduces gradients itself
        randomness={"seed": options.seed},
        visualizer={"type": "Visualizer", "vis_backends": [{"type": "TensorboardVisBackend"}]},
        log_level="ERROR",
        experiment_name=f"amex-{os.getpid()}-{next(_runs)}",
        load_from=None if last is None else str(last),
        resume=last is not None,
    )


def make_optimizer(config: Config, learner: Learner, on_gpu: bool) -> OptimWrapper | OptimWrapperDict:
    """Return the optimizer for ``Learner.train_step``; with a separate adversary, ``encoders`` and ``adversary``."""
    options = config.train
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[options.optimizer]
    optimizer = optimizer_class(parameter_groups(options, learner), lr=options.lr, fused=True)
    clip = None if options.clip_grad is None else {"max_norm": options.clip_grad}
    common: dict[str, Any] = {"clip_grad": clip, "accumulative_counts": options.accumulate}
    amp = options.amp if options.amp != "auto" else "bf16" if on_gpu else "off"
    if amp == "off":
        encoders = OptimWrapper(optimizer, **common)
    else:
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[amp]
        encoders = AmpOptimWrapper(optimizer=optimizer, dtype=dtype, **common)
    adversary = learner.objective.adversary
    if adversary is None or not adversary.has_own_step:
        return encoders
    adam = torch.optim.Adam(adversary.parameters(), lr=config.objective.adversary_lr, betas=(0.5, 0.999))
    return OptimWrapperDict(encoders=encoders, adversary=OptimWrapper(adam))


def parameter_groups(options: TrainOptions, learner: Learner) -> list[dict[str, Any]]:
    """Group trainable parameters by learning rate and weight decay, for torch's optimizers; no group is empty.

    Only parameters with two or more axes decay: weights of linear maps and convolutions, embeddings. Biases, scales
    of norms and a learned temperature do not: a value near zero is no simpler model.
    """
    slow, share = learner.model.slow_parameters()
    slow_ids = {id(parameter) for parameter in slow}
    groups: dict[tuple[bool, bool], dict[str, Any]] = {
        (is_slow, decays): {
            "params": [],
            "lr": options.lr * (share if is_slow else 1.0),
            "weight_decay": options.weight_decay if decays else 0.0,
        }
        for is_slow in (False, True)
        for decays in (True, False)
    }
    for parameter in learner.parameters():
        if parameter.requires_grad:
            groups[id(parameter) in slow_ids, parameter.ndim > 1]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]
