"""Variants of one configuration, each trained with several seeds: chosen on validation, reported on test."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..features import open_store
from ..features.schema import write_json
from ..manifests import read_manifest
from .checkpoint import load_checkpoint
from .config import Config, ConfigError, load_config, variants_of
from .data import Split, of_split
from .evaluate import evaluate_split, flat
from .fit import fit


def ablate(
    which: str,
    *,
    settings: Sequence[str],
    seeds: Sequence[int],
    only: Sequence[str],
    store: Path,
    manifest: Path,
    work_dir: Path,
    split: str,
    merged: bool,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Trains every variant with every seed, and evaluates its best checkpoint on ``split``.

    A run that is finished is not repeated, one that was interrupted goes on: the same command resumes.

    Returns:
        By variant: ``runs`` by seed, each with its ``figures``; ``mean`` and ``std`` (of the sample) of each figure.
    """
    variants = variants_of(which)
    if unknown := sorted(set(only) - variants.keys()):
        raise ConfigError(f"{which} has no variant {unknown[0]!r}; it has {', '.join(map(repr, variants))}")
    chosen = {name: changes for name, changes in variants.items() if not only or name in only}
    # All configurations are checked before the first is trained.
    plans = {
        (name, seed): load_config(which, [*settings, *changes, f"train.seed={seed}"])
        for name, changes in chosen.items()
        for seed in seeds
    }
    results: dict[str, dict[str, Any]] = {name: {"runs": {}} for name in chosen}
    for number, ((name, seed), config) in enumerate(plans.items(), start=1):
        folder = work_dir / re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") / f"seed{seed}"
        say(f"[{number}/{len(plans)}] {name}, seed {seed}: {folder}")
        results[name]["runs"][seed] = _run(config, folder, store, manifest, split, merged)
    for entry in results.values():
        entry |= spread([run["figures"] for run in entry["runs"].values()])
    write_json(work_dir / f"ablation-{split}.json", results)
    return results


def _run(config: Config, folder: Path, store: Path, manifest: Path, split: str, merged: bool) -> dict[str, Any]:
    record = folder / f"result-{split}{'-merged' if merged else ''}.json"
    if record.is_file():
        return json.loads(record.read_text())
    started = time.monotonic()
    fitted = fit(config, store=store, manifest=manifest, work_dir=folder, resume=True)
    seconds = time.monotonic() - started
    checkpoint = load_checkpoint(fitted.best)
    opened = open_store(store)
    clips = of_split(read_manifest(manifest), split, str(manifest))
    data = Split(opened, clips, checkpoint.config.model, checkpoint.config.data, checkpoint.text(opened, manifest))
    evaluated = evaluate_split(checkpoint.model(), data, merged=merged)
    figures = flat(evaluated) | {"val rsum": fitted.val["rsum"]}
    result = {"figures": figures, "epoch": fitted.epoch, "parameters": fitted.parameters, "seconds": round(seconds, 1)}
    result |= {name: evaluated[name] for name in ("coverage", "warnings")}
    write_json(record, result)
    return result


def spread(runs: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """``mean`` and ``std`` of each figure; of one run the spread is not known and left out."""
    names = list(runs[0])
    found = {"mean": {name: float(np.mean([run[name] for run in runs])) for name in names}}
    if len(runs) > 1:
        found["std"] = {name: float(np.std([run[name] for run in runs], ddof=1)) for name in names}
    return found
