"""Evaluate linear methods on the features of a store: CCA and ridge regression.

    pip install 'amex[bench]'
    python benchmarks/linear.py --store vidvrd.zarr --manifest vidvrd.jsonl --streams resnet152 conv3d [--merge]

Videos are standardised means of their rows; texts are tf-idf vectors of their words, or sentence vectors of a text
stream. Regularisation and dimensions are chosen by rsum on the validation split; figures are for the test split.
Nothing is random.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import scipy.special
from sklearn.feature_extraction.text import TfidfVectorizer

from amex.features import Store, open_store
from amex.manifests import Clip, read_manifest
from amex.train.metrics import Scores, Truth, evaluate
from amex.train.ranks import Ranks

REGULARISATION = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
DIMENSIONS = (16, 32, 64, 80, 128, 256)


def videos(store: Store, streams: list[str], clips: list[Clip]) -> np.ndarray:
    """Return (clips, D): the means of each stream's rows, concatenated."""
    parts = []
    for name in streams:
        batch = store[name].read([clip.clip_id for clip in clips])
        parts.append(
            np.add.reduceat(batch.values.astype(np.float64), batch.offsets[:-1]) / np.diff(batch.offsets)[:, None]
        )
    return np.concatenate(parts, axis=1)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)


def cca(x: np.ndarray, y: np.ndarray, regularisation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Regularised CCA: return projections of x and of y, and the correlations in descending order."""
    n = len(x)
    cxx = x.T @ x / n
    cyy = y.T @ y / n
    cxx += regularisation * np.trace(cxx) / len(cxx) * np.eye(len(cxx))
    cyy += regularisation * np.trace(cyy) / len(cyy) * np.eye(len(cyy))
    lx, ly = np.linalg.cholesky(cxx), np.linalg.cholesky(cyy)
    whitened = scipy.linalg.solve_triangular(lx, x.T @ y / n, lower=True)
    whitened = scipy.linalg.solve_triangular(ly, whitened.T, lower=True).T
    u, s, vt = np.linalg.svd(whitened, full_matrices=False)
    a = scipy.linalg.solve_triangular(lx.T, u)
    b = scipy.linalg.solve_triangular(ly.T, vt.T)
    return a, b, s


def methods(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Yield (method, setting, projection of videos, projection of texts) for every setting; x and y are centred."""
    for regularisation in REGULARISATION:
        a, b, s = cca(x, y, regularisation)
        for dims in DIMENSIONS:
            if dims <= len(s):
                weight = s[:dims]
                yield (
                    "CCA",
                    f"regularisation {regularisation:g}, {dims} dimensions",
                    a[:, :dims] * weight,
                    b[:, :dims] * weight,
                )
        gram = x.T @ x + regularisation * np.trace(x.T @ x) / x.shape[1] * np.eye(x.shape[1])
        yield "ridge", f"regularisation {regularisation:g}", np.linalg.solve(gram, x.T @ y), np.eye(y.shape[1])


def linear(
    store: Store, clips: list[Clip], *, streams: list[str], text: str, logit: bool, merge: bool
) -> Iterator[tuple[str, str, dict[str, Any], Ranks]]:
    """Yield each method with each kind of text: its name, the chosen setting, test figures and test ranks.

    Args:
        text: the text stream whose sentence vectors to use beside tf-idf.
        logit: take the log-odds of features, which must be probabilities.
        merge: treat equal captions as one query.
    """
    splits = {name: [clip for clip in clips if clip.split == name] for name in ("train", "val", "test")}
    raw = {name: videos(store, streams, own) for name, own in splits.items()}
    if logit:
        raw = {name: scipy.special.logit(values.clip(1e-6, 1 - 1e-6)) for name, values in raw.items()}
    mean, std = raw["train"].mean(0), raw["train"].std(0) + 1e-6
    x = {name: (values - mean) / std for name, values in raw.items()}
    pairs = {name: [(i, c) for i, clip in enumerate(own) for c in clip.captions] for name, own in splits.items()}
    vectorizer = TfidfVectorizer(token_pattern=r"\w+").fit([caption for _, caption in pairs["train"]])
    texts = {
        "tf-idf": {name: vectorizer.transform([c for _, c in own]).toarray() for name, own in pairs.items()},
        "sentence vectors": {
            name: store[text].read([c for _, c in own])["sentence"].astype(np.float64) for name, own in pairs.items()
        },
    }
    for kind, y in texts.items():
        centre = y["train"].mean(0)
        train_videos = x["train"][[i for i, _ in pairs["train"]]]
        best: dict[str, tuple[float, str, np.ndarray, np.ndarray]] = {}
        for method, setting, a, b in methods(train_videos, unit(y["train"]) - centre):
            rsum = evaluate(*scores_of(x["val"], unit(y["val"]) - centre, a, b, splits["val"], merge))["rsum"]
            if method not in best or rsum > best[method][0]:
                best[method] = (rsum, setting, a, b)
        for method, (_, setting, a, b) in best.items():
            scores, truth = scores_of(x["test"], unit(y["test"]) - centre, a, b, splits["test"], merge)
            ranks = Ranks.of_scores(scores, truth, splits["test"])
            yield f"{method}, {kind}", setting, evaluate(scores, truth), ranks


def scores_of(
    x: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray, clips: list[Clip], merge: bool
) -> tuple[Scores, Truth]:
    """Return the cosines between projected videos and texts, and the ground truth."""
    counts = [len(clip.captions) for clip in clips]
    starts = list(itertools.accumulate([0, *counts]))
    own = [list(range(start, start + count)) for start, count in zip(starts, counts, strict=False)]
    captions = [caption for clip in clips for caption in clip.captions]
    if merge:
        first = {caption: index for index, caption in reversed(list(enumerate(captions)))}
        places = sorted(first.values())
        number = {caption: places.index(index) for caption, index in first.items()}
        y, own = y[places], [sorted({number[caption] for caption in clip.captions}) for clip in clips]
    return Scores.of(unit(y @ b) @ unit(x @ a).T), Truth(captions=own, queries=len(y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--streams", nargs="+", required=True)
    parser.add_argument("--text", default="text_bert", help="text stream whose sentence vectors to use beside tf-idf")
    parser.add_argument("--logit", action="store_true", help="take the log-odds of features (probabilities)")
    parser.add_argument("--merge", action="store_true", help="treat equal captions as one query")
    options = vars(parser.parse_args())
    store, clips = open_store(options.pop("store")), read_manifest(options.pop("manifest"))
    print("method | t2v R@1 R@5 R@10 | v2t R@1 R@5 R@10 | rsum | chosen on val")
    for name, setting, result, _ in linear(store, clips, **options):
        cells = [
            " ".join(f"{result[key][f'R@{k}']:.1f}" for k in (1, 5, 10)) for key in ("text_to_video", "video_to_text")
        ]
        print(f"{name} | {cells[0]} | {cells[1]} | {result['rsum']:.1f} | {setting}")


if __name__ == "__main__":
    main()
