"""Variants of one configuration, each trained with several seeds: chosen on validation, reported on test."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..errors import AmexError
from ..features import diff_specs, fingerprint, open_store
from ..manifests import read_manifest
from ..storage import write_json
from .checkpoint import learned_from, load_checkpoint
from .config import Config, ConfigError, load_config, variants_of
from .data import Split, fingerprints, of_split
from .evaluate import evaluate_split, flat
from .fit import fit
from .options import ModelOptions
from .rolegraphs import Graphs
from .streams import choose_streams


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What the runs of an ablation read, and how their figures are made: options of ``amex ablate``.

    Attributes:
        split: what the figures are of.
        merged: equal captions are one query, as of ``evaluate_split``.
    """

    store: Path
    manifest: Path
    split: str
    merged: bool

    @property
    def name(self) -> str:
        """Of the figures, as file names have it."""
        return f"{self.split}{'-merged' if self.merged else ''}"


class Snapshot:
    """Store and manifest as they are when it is made; what many runs share is read once.

    Args:
        say: called once with each line about streams that are left out because they cannot be opened.
    """

    def __init__(self, sources: Sources, say: Callable[[str], None] = lambda line: None) -> None:
        self.sources, self._say = sources, functools.cache(say)
        self.store, self.clips = open_store(sources.store), read_manifest(sources.manifest)
        self._graphs: Graphs | None = None
        self._learned: dict[tuple[Any, ...], dict[str, str]] = {}

    def learned_from(self, options: ModelOptions, splits: tuple[str, ...], reads_graphs: bool) -> dict[str, str]:
        """What a model reads of some splits, as of ``checkpoint.learned_from``."""
        key = (*options.video_streams, options.text_stream, reads_graphs, splits)
        if key not in self._learned:
            if reads_graphs and self._graphs is None:
                self._graphs = Graphs.beside(self.sources.manifest, options)
            clips = {name: of_split(self.clips, name, str(self.sources.manifest)) for name in splits}
            graphs = self._graphs if reads_graphs else None
            self._learned[key] = learned_from(self.store, options, clips, graphs)
        return self._learned[key]

    def run(self, config: Config, folder: Path) -> Run:
        """The run of a configuration, in ``folder`` with others of its variant."""
        options = choose_streams(config.model, self.store, self._say)
        made_from = {
            "amex": __version__,
            "config": config.model_copy(update={"model": options}).plain(),
            "fingerprints": fingerprints(self.store, options),
            "learned_from": self.learned_from(options, (config.data.train, config.data.val), config.reads_graphs),
        }
        tested = self.learned_from(options, (self.sources.split,), options.needs_graphs)
        run_folder = folder / f"seed{config.train.seed}-{fingerprint(made_from)[:8]}"
        return Run(config=config, folder=run_folder, made_from=made_from, tested=tested)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One variant with one seed. Its folder is called after all that decides its weights.

    Attributes:
        made_from: what decides the weights.
        tested: what decides the figures beside the weights.
    """

    config: Config
    folder: Path
    made_from: dict[str, Any]
    tested: dict[str, str]

    def result(self, sources: Sources) -> dict[str, Any] | None:
        """Its figures, if they were made from what there is now."""
        path = self.folder / f"result-{sources.name}.json"
        result = json.loads(path.read_text()) if path.is_file() else None
        return result if result and result["tested"] == self.tested else None

    def changed(self) -> str:
        """What differs from the last run of this variant and seed, if that was made from something else."""
        seed = f"seed{self.config.train.seed}"
        others = [*self.folder.parent.glob(seed), *self.folder.parent.glob(f"{seed}-*")]
        if self.folder.exists() or not others:
            return ""
        last = max(others, key=lambda path: path.stat().st_mtime)
        record = last / "made_from.json"
        if not record.is_file():
            return f"{last} was made by an earlier amex"
        differences = diff_specs(json.loads(record.read_text()), self.made_from)
        words = [f"{field}: {old!r} then, {new!r} now" for field, old, new in differences]
        return f"{last} was made from something else: {'; '.join(words)}"

    def train(self, sources: Sources) -> None:
        """Trains what is not trained yet, and keeps the figures."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "made_from.json", self.made_from)
        fitted = fit(self.config, store=sources.store, manifest=sources.manifest, work_dir=self.folder, resume=True)
        checkpoint = load_checkpoint(fitted.best)
        store = open_store(sources.store)
        clips = of_split(read_manifest(sources.manifest), sources.split, str(sources.manifest))
        text = checkpoint.text(store, sources.manifest)
        data = Split(store, clips, checkpoint.config.model, checkpoint.config.data, text)
        evaluated = evaluate_split(checkpoint.model(), data, merged=sources.merged)
        history = [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]
        result = {
            "figures": flat(evaluated) | {"val rsum": fitted.val["rsum"]},
            "coverage": evaluated["coverage"],
            "warnings": evaluated["warnings"],
            "epoch": fitted.epoch,
            "parameters": fitted.parameters,
            "seconds": round(sum(line["seconds"] for line in history), 1),
            "folder": f"{self.folder.parent.name}/{self.folder.name}",  # below the table
            "tested": self.tested,
        }
        write_json(self.folder / f"result-{sources.name}.json", result)


def ablate(
    which: str,
    *,
    settings: Sequence[str],
    seeds: Sequence[int],
    only: Sequence[str],
    sources: Sources,
    work_dir: Path,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Trains every variant with every seed, and evaluates its best checkpoint on the split.

    A run that is finished is not repeated, one that was interrupted goes on: the same command resumes. If the
    configuration, the features, the clips or the role graphs of a run changed, it is trained again in a folder of its
    own; if only what it is evaluated on changed, it is evaluated again.

    Args:
        only: the variants to train; all without any.

    Returns:
        By variant, of all that were made from what there is now, also before: ``runs`` by seed, each with its
        ``figures``; ``mean`` and ``std`` (of the sample) of each figure. ``table_path`` keeps it.

    Raises:
        ConfigError: if a variant is not there, cannot be configured, or would share its folder with another.
        AmexError: as of ``fit``.
    """
    variants = variants_of(which)
    folders: dict[str, str] = {}
    for name in variants:
        other = folders.setdefault(_slug(name), name)
        if other != name:
            raise ConfigError(
                f"{which}: variants {other!r} and {name!r} would both be kept in the folder {_slug(name)!r}: rename one"
            )
    if unknown := sorted(set(only) - variants.keys()):
        raise ConfigError(f"{which} has no variant {unknown[0]!r}; it has {', '.join(map(repr, variants))}")

    def plan(name: str, seed: int, snapshot: Snapshot) -> Run:
        config = load_config(which, [*settings, *variants[name], f"train.seed={seed}"])
        return snapshot.run(config, work_dir / _slug(name))

    snapshot = Snapshot(sources, say)
    chosen = [(name, seed) for name in variants if not only or name in only for seed in seeds]
    # All configurations are checked before the first is trained.
    plans = {(name, seed): plan(name, seed, snapshot) for name, seed in chosen}
    for number, ((name, seed), run) in enumerate(plans.items(), start=1):
        say(f"[{number}/{len(plans)}] {name}, seed {seed}: {run.folder}")
        if run.result(sources):
            continue
        snapshot = Snapshot(sources)  # which may have changed since the first runs began
        run = plan(name, seed, snapshot)
        if changed := run.changed():
            say(f"  trained again: {changed}")
        elif (run.folder / f"result-{sources.name}.json").is_file():
            say(f"  evaluated again: what split {sources.split!r} holds changed")
        run.train(sources)
    snapshot = Snapshot(sources)
    results: dict[str, dict[str, Any]] = {}
    for name in variants:
        runs, left_out = {}, []
        for seed in _seeds(work_dir / _slug(name)):
            with contextlib.suppress(AmexError):  # a variant that was not asked for, and cannot be trained as it is
                if result := plan(name, seed, snapshot).result(sources):
                    runs[seed] = result
                    continue
            left_out.append(str(seed))
        if runs:
            results[name] = {"runs": runs} | spread([run["figures"] for run in runs.values()])
        if left_out:
            say(f"{name}, seed {', '.join(left_out)}: not in the table, unfinished or made from something else")
    if not results:
        raise AmexError("the store or the manifest changed while runs were at work: the same command trains again")
    write_json(table_path(work_dir, sources), results)
    return results


def _seeds(folder: Path) -> list[int]:
    """Those of the runs of a variant, whatever they were made from."""
    names = (re.fullmatch(r"seed(\d+)(-[0-9a-f]{8})?", path.name) for path in folder.glob("seed*"))
    return sorted({int(name[1]) for name in names if name})


def table_path(work_dir: Path, sources: Sources) -> Path:
    """Where ``ablate`` keeps what it returns."""
    return work_dir / f"ablation-{sources.name}.json"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """``mean`` and ``std`` of each figure; of one run the spread is not known and left out."""
    names = list(runs[0])
    found = {"mean": {name: float(np.mean([run[name] for run in runs])) for name in names}}
    if len(runs) > 1:
        found["std"] = {name: float(np.std([run[name] for run in runs], ddof=1)) for name in names}
    return found
