"""Train variants of a configuration with several seeds, select checkpoints on validation, report test figures."""

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
from .evaluate import encode, evaluate_scores, score_embeddings, short_figures
from .fitting import fit
from .gap import Gap
from .gap import measure as measure_gap
from .losses import mean_average_precision
from .metrics import MetricsError
from .models import Embeddings, RetrievalModel
from .options import ModelOptions
from .ranks import Ranks, clip_groups, compare_ranks
from .rolegraphs import Graphs
from .selection import of_split
from .streams import choose_streams


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The input of an ablation's runs, and how their figures are computed: options of ``amex ablate``.

    Attributes:
        store, manifest: paths.
        split: the split to evaluate.
        merged: whether equal captions are one query; see ``evaluate_split``.
    """

    store: Path
    manifest: Path
    split: str
    merged: bool

    @property
    def name(self) -> str:
        """A name of the figures, for file names."""
        return f"{self.split}{'-merged' if self.merged else ''}"


class Snapshot:
    """A store and a manifest at one point in time. Data that several runs share is read once.

    Args:
        say: receives a line, once, for each stream that cannot be opened and is left out.
    """

    def __init__(self, sources: Sources, say: Callable[[str], None] = lambda line: None) -> None:
        self.sources, self._say = sources, functools.cache(say)
        self.store, self.clips = open_store(sources.store), read_manifest(sources.manifest)
        self._graphs: Graphs | None = None
        self._learned: dict[tuple[Any, ...], dict[str, str]] = {}

    def learned_from(self, options: ModelOptions, splits: tuple[str, ...], reads_graphs: bool) -> dict[str, str]:
        """Return the digests of what a model reads of some splits; see ``checkpoint.learned_from``."""
        key = (*options.video_streams, options.text_stream, reads_graphs, splits)
        if key not in self._learned:
            if reads_graphs and self._graphs is None:
                self._graphs = Graphs.beside(self.sources.manifest, options)
            clips = {name: of_split(self.clips, name, str(self.sources.manifest)) for name in splits}
            graphs = self._graphs if reads_graphs else None
            self._learned[key] = learned_from(self.store, options, clips, graphs)
        return self._learned[key]

    def run(self, config: Config, folder: Path) -> Run:
        """Plan the run of a configuration, in ``folder`` with other runs of its variant."""
        options = choose_streams(config.model, self.store, self._say)
        made_from = {
            "amex": __version__,
            "config": config.model_copy(update={"model": options}).to_json(),
            "fingerprints": fingerprints(self.store, options),
            "learned_from": self.learned_from(options, (config.data.train, config.data.val), config.reads_graphs)
            | initial_weights(options),
        }
        tested = self.learned_from(options, (self.sources.split,), options.needs_graphs)
        run_folder = folder / f"seed{config.train.seed}-{fingerprint(made_from)[:8]}"
        return Run(config=config, folder=run_folder, made_from=made_from, tested=tested)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One variant with one seed. The name of its folder contains a digest of everything that determines its weights.

    Attributes:
        made_from: everything that determines the weights.
        tested: everything else that determines the figures.
    """

    config: Config
    folder: Path
    made_from: dict[str, Any]
    tested: dict[str, str]

    def result(self, sources: Sources) -> dict[str, Any] | None:
        """Return the figures if they were computed from the current data, else None."""
        path = self.folder / f"result-{sources.name}.json"
        result = json.loads(path.read_text()) if path.is_file() else None
        return result if result and result["tested"] == self.tested and self.ranks(sources) else None

    def ranks(self, sources: Sources) -> Ranks | None:
        """Return the ranks of the queries; None if they are missing or damaged."""
        with contextlib.suppress(MetricsError):
            return Ranks.load(self.ranks_path(sources))
        return None

    def ranks_path(self, sources: Sources) -> Path:
        """Path of the ranks of the queries."""
        return self.folder / f"ranks-{sources.name}.npz"

    def changed(self) -> str:
        """Describe how the inputs differ from those of the last run of this variant and seed; empty if they do not."""
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
        """Train the run, or continue it, evaluate it and store its figures."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "made_from.json", self.made_from)
        fitted = fit(self.config, store=sources.store, manifest=sources.manifest, work_dir=self.folder, resume=True)
        checkpoint = load_checkpoint(fitted.best)
        store = open_store(sources.store)
        clips = of_split(read_manifest(sources.manifest), sources.split, str(sources.manifest))
        text = checkpoint.text(store, sources.manifest)
        data = Split(store, clips, checkpoint.config.model, checkpoint.config.data, text)
        model = checkpoint.model()
        embeddings = encode(model, data)
        scores = score_embeddings(model, *embeddings)
        evaluated = evaluate_scores(scores, data, merged=sources.merged)
        gap = measure_gap(model, data, *embeddings, clip_groups(data.clips))
        Ranks.of(scores, data, merged=sources.merged, gap=gap).save(self.ranks_path(sources))
        history = [json.loads(line) for line in (self.folder / "history.jsonl").read_text().splitlines()]
        result = {
            "figures": short_figures(evaluated)
            | gap_figures(gap)
            | concept_figures(model, data, *embeddings)
            | {"val rsum": fitted.val["rsum"]},
            "train": history[-1]["train"],
            "coverage": evaluated["coverage"],
            "warnings": evaluated["warnings"],
            "epoch": fitted.epoch,
            "parameters": fitted.parameters,
            "seconds": round(sum(line["seconds"] for line in history), 1),
            "folder": f"{self.folder.parent.name}/{self.folder.name}",  # relative to the table
            "tested": self.tested,
        }
        write_json(self.folder / f"result-{sources.name}.json", result)


def initial_weights(options: ModelOptions) -> dict[str, str]:
    """Return digests of the files that initialise weights, by kind. A hub model is identified by its name alone."""
    digests = {}
    for what, source in (("word vectors", options.word_vectors), ("text tower", options.tower)):
        path = Path(source)
        if source and path.exists():
            files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
            digests[what] = digest([file_sha256(file, AmexError) for file in files])
    return digests


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
    """Train every variant with every seed, and evaluate its best checkpoint on the split.

    Finished runs are not repeated, interrupted ones continue: the same command resumes. A run whose configuration,
    features, clips or role graphs changed is trained again in a new folder. A run whose evaluation data changed is
    only evaluated again.

    Args:
        only: the variants to train; empty: all.

    Returns:
        By variant, for all runs made from the current data, also earlier ones: ``runs`` by seed, each with its
        ``figures``; ``mean`` and ``std`` (of the sample) of each figure; ``against``, see ``compare_with_first``. The
        same is written to ``table_path``.

    Raises:
        ConfigError: if a variant is unknown or invalid, or shares its folder with another.
        AmexError: from ``fit``.
    """
    variants = variants_of(which)
    folders: dict[str, str] = {}
    for name in variants:
        other = folders.setdefault(_slug(name), name)
        if other != name:
            raise ConfigError(
                f"{which}: variants {other!r} and {name!r} would share the folder {_slug(name)!r}: rename one"
            )
    if unknown := sorted(set(only) - variants.keys()):
        raise ConfigError(f"{which} has no variant {unknown[0]!r}; it has {', '.join(map(repr, variants))}")

    def plan(name: str, seed: int, snapshot: Snapshot) -> Run:
        config = load_config(which, [*settings, *variants[name], f"train.seed={seed}"])
        return snapshot.run(config, work_dir / _slug(name))

    snapshot = Snapshot(sources, say)
    chosen = [(name, seed) for name in variants if not only or name in only for seed in seeds]
    # Check all configurations before training the first.
    plans = {(name, seed): plan(name, seed, snapshot) for name, seed in chosen}
    for number, ((name, seed), run) in enumerate(plans.items(), start=1):
        say(f"[{number}/{len(plans)}] {name}, seed {seed}: {run.folder}")
        if run.result(sources):
            continue
        snapshot = Snapshot(sources)  # the data may have changed during earlier runs
        run = plan(name, seed, snapshot)
        if changed := run.changed():
            say(f"  trained again: {changed}")
        elif (run.folder / f"result-{sources.name}.json").is_file():
            say(f"  evaluated again: split {sources.split!r} changed, or its ranks are missing")
        run.train(sources)
    snapshot = Snapshot(sources)
    results: dict[str, dict[str, Any]] = {}
    ranks: dict[str, dict[int, Ranks]] = {}
    for name in variants:
        runs, left_out = {}, []
        for seed in _seeds(work_dir / _slug(name)):
            with contextlib.suppress(AmexError):  # the variant may not have been requested and may be invalid
                run = plan(name, seed, snapshot)
                if (result := run.result(sources)) and (query_ranks := run.ranks(sources)):
                    runs[seed], ranks.setdefault(name, {})[seed] = result, query_ranks
                    continue
            left_out.append(str(seed))
        if runs:
            results[name] = {"runs": runs} | mean_and_std([run["figures"] for run in runs.values()])
        if left_out:
            say(f"{name}, seed {', '.join(left_out)}: not in the table, unfinished or made from other data")
    if not results:
        raise AmexError("the store or the manifest changed during the runs: run the same command to train again")
    first = next(iter(results))
    for name in list(results)[1:]:
        results[name]["against"] = compare_with_first(first, ranks[name], ranks[first])
    write_json(table_path(work_dir, sources), results)
    return results


def compare_with_first(first: str, ours: Mapping[int, Ranks], theirs: Mapping[int, Ranks]) -> dict[str, Any]:
    """Compare a variant with the first one of the table, over their common seeds.

    Returns:
        ``variant``, the first one's name; ``seeds`` in common; ``intervals``, the difference of each figure with the
        bounds of 95 percent. If no comparison is possible, ``problem`` says why instead.
    """
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return {"variant": first, "problem": "no seed in common"}
    try:
        intervals = compare_ranks([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    except MetricsError as error:
        return {"variant": first, "problem": str(error)}
    return {"variant": first, "seeds": seeds, "intervals": {name: list(bounds) for name, bounds in intervals.items()}}


def gap_figures(gap: Gap | None) -> dict[str, float]:
    """Return the figures of the modality gap, the last two in percent."""
    if gap is None:
        return {}
    return {
        "modality gap": gap.distance,
        "modality probe": 100 * float(gap.probe_right.mean()),
        "mixed R@10": 100 * float((gap.mixed <= 10).mean()),
    }


def concept_figures(model: RetrievalModel, split: Split, videos: Embeddings, texts: Embeddings) -> dict[str, float]:
    """Return the mAP of a model's own concept predictions for each side, in percent, averaged over levels."""
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
        if not np.isnan(values).all():  # the split may contain none of the concepts
            figures[f"{side} concept mAP"] = 100 * float(np.nanmean(values))
    return figures


def _seeds(folder: Path) -> list[int]:
    """Return the seeds of a variant's runs, whatever their data."""
    names = (re.fullmatch(r"seed(\d+)(-[0-9a-f]{8})?", path.name) for path in folder.glob("seed*"))
    return sorted({int(name[1]) for name in names if name})


def table_path(work_dir: Path, sources: Sources) -> Path:
    """Path of the table that ``ablate`` writes."""
    return work_dir / f"ablation-{sources.name}.json"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def mean_and_std(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return ``mean`` and, for two runs or more, ``std`` of each figure."""
    names = list(runs[0])
    figures = {"mean": {name: float(np.mean([run[name] for run in runs])) for name in names}}
    if len(runs) > 1:
        figures["std"] = {name: float(np.std([run[name] for run in runs], ddof=1)) for name in names}
    return figures
