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
from ..foreign import file_sha256
from ..manifests import read_manifest
from ..storage import write_json
from .checkpoint import digest, learned_from, load_checkpoint
from .config import Config, ConfigError, load_config, variants_of
from .data import Split, fingerprints
from .evaluate import encode, evaluate_scores, flat, scores_of
from .fitting import fit
from .gap import Gap
from .gap import measure as measure_gap
from .losses import mean_average_precision
from .metrics import MetricsError
from .models import Embeddings, RetrievalModel
from .options import ModelOptions
from .ranks import Ranks, compare, groups_of
from .rolegraphs import Graphs
from .selection import of_split
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
            "learned_from": self.learned_from(options, (config.data.train, config.data.val), config.reads_graphs)
            | begun_with(options),
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
        return result if result and result["tested"] == self.tested and self.ranks(sources) else None

    def ranks(self, sources: Sources) -> Ranks | None:
        """Its ranks, query by query; None if they are not there, or damaged."""
        with contextlib.suppress(MetricsError):
            return Ranks.load(self.ranks_path(sources))
        return None

    def ranks_path(self, sources: Sources) -> Path:
        """Where its ranks are, query by query."""
        return self.folder / f"ranks-{sources.name}.npz"

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
        model = checkpoint.model()
        encoded = encode(model, data)
        scores = scores_of(model, *encoded)
        evaluated = evaluate_scores(scores, data, merged=sources.merged)
        gap = measure_gap(model, data, *encoded, groups_of(data.clips))
        Ranks.of(scores, data, merged=sources.merged, gap=gap).save(self.ranks_path(sources))
        history = [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]
        result = {
            "figures": flat(evaluated)
            | apart(gap)
            | concept_figures(model, data, *encoded)
            | {"val rsum": fitted.val["rsum"]},
            "train": history[-1]["train"],
            "coverage": evaluated["coverage"],
            "warnings": evaluated["warnings"],
            "epoch": fitted.epoch,
            "parameters": fitted.parameters,
            "seconds": round(sum(line["seconds"] for line in history), 1),
            "folder": f"{self.folder.parent.name}/{self.folder.name}",  # below the table
            "tested": self.tested,
        }
        write_json(self.folder / f"result-{sources.name}.json", result)


def begun_with(options: ModelOptions) -> dict[str, str]:
    """Digests of the files that weights begin with, by what they are; a model of a hub goes by its name."""
    found = {}
    for what, source in (("word vectors", options.word_vectors), ("text tower", options.tower)):
        path = Path(source)
        if source and path.exists():
            files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            found[what] = digest([file_sha256(file, AmexError) for file in files])
    return found


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
        ``figures``; ``mean`` and ``std`` (of the sample) of each figure; ``against``, see ``compared``. ``table_path``
        keeps it.

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
            say(f"  evaluated again: what split {sources.split!r} holds changed, or its ranks are gone")
        run.train(sources)
    snapshot = Snapshot(sources)
    results: dict[str, dict[str, Any]] = {}
    ranks: dict[str, dict[int, Ranks]] = {}
    for name in variants:
        runs, left_out = {}, []
        for seed in _seeds(work_dir / _slug(name)):
            with contextlib.suppress(AmexError):  # a variant that was not asked for, and cannot be trained as it is
                run = plan(name, seed, snapshot)
                if (result := run.result(sources)) and (found := run.ranks(sources)):
                    runs[seed], ranks.setdefault(name, {})[seed] = result, found
                    continue
            left_out.append(str(seed))
        if runs:
            results[name] = {"runs": runs} | spread([run["figures"] for run in runs.values()])
        if left_out:
            say(f"{name}, seed {', '.join(left_out)}: not in the table, unfinished or made from something else")
    if not results:
        raise AmexError("the store or the manifest changed while runs were at work: the same command trains again")
    first = next(iter(results))
    for name in list(results)[1:]:
        results[name]["against"] = compared(first, ranks[name], ranks[first])
    write_json(table_path(work_dir, sources), results)
    return results


def compared(first: str, ours: Mapping[int, Ranks], theirs: Mapping[int, Ranks]) -> dict[str, Any]:
    """What a variant gains over the first one of the table, over the seeds that both have.

    Returns:
        ``variant``, the other; ``seeds`` in common; ``intervals``, by figure its difference with the bounds of 95
        percent. ``problem`` in their place says why there are none.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return {"variant": first, "problem": "no seed in common"}
    try:
        intervals = compare([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    except MetricsError as error:
        return {"variant": first, "problem": str(error)}
    return {"variant": first, "seeds": seeds, "intervals": {name: list(found) for name, found in intervals.items()}}


def apart(gap: Gap | None) -> dict[str, float]:
    """The figures of what lies between videos and texts, the last two in percent."""
    if gap is None:
        return {}
    return {
        "modality gap": gap.distance,
        "modality probe": 100 * float(gap.told.mean()),
        "mixed R@10": 100 * float((gap.mixed <= 10).mean()),
    }


def concept_figures(model: RetrievalModel, split: Split, videos: Embeddings, texts: Embeddings) -> dict[str, float]:
    """How well each side of a model that tells concepts knows those of a split: mAP in percent, a mean over levels."""
    if not model.concept_levels or split.text.concepts is None:
        return {}
    captions = [[split.captions[i] for i in split.own[clip]] for clip in split.with_captions]
    labels = split.text.concepts.labels([(own[0], own) for own in captions])
    first = [split.own[clip][0] for clip in split.with_captions]
    figures = {}
    for side, embeddings, places in (("video", videos, split.with_captions), ("text", texts, first)):
        values = [
            float(mean_average_precision(embeddings[f"{level} concepts"][places], *labels[kind].values()))
            for level, kind in model.concept_levels.items()
        ]
        if not np.isnan(values).all():  # the split may have none of the concepts that were taught
            figures[f"{side} concept mAP"] = 100 * float(np.nanmean(values))
    return figures


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
