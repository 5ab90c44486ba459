"""Files in which benchmarks take the answers of a model for a whole gallery: EPIC-Kitchens' challenge, MTEB."""

from __future__ import annotations

import contextlib
import logging
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import AmexError, did_you_mean, first_line, plural
from ..manifests.published import read_rows
from ..storage import replacing
from .rankings import Judged, best_first

# Their number in https://competitions.codalab.org/competitions/26138, "Pickle Submission Format".
EPIC_VERSION, EPIC_CHALLENGE, EPIC_MEMBER = "0.1", "multi_instance_retrieval", "test.pkl"


def epic_mir(judged: Judged, sentences: Path, supervision: Sequence[int]) -> dict[str, Any]:
    """What EPIC-Kitchens-100's multi-instance retrieval challenge takes.

    ``sim_mat`` (videos, texts) float32 in [0, 1], in which the scores are moved and scaled as a whole; ``vis_ids`` and
    ``txt_ids``, the narration ids of both axes; ``version``, ``challenge``; ``sls_pt``, ``sls_tl`` and ``sls_td``.

    Args:
        judged: every clip of the split ``test``, with its narration.
        sentences: ``EPIC_100_retrieval_test_sentence.csv``, which lists the texts by narration id.
        supervision: the Supervision Levels Scale of the model (Damen and Wray, 2020): pre-training, training labels,
            training data.

    Raises:
        AmexError: if a sentence is none of the narrations, or a clip has another number of them than one.
    """
    owners = judged.truth.captions
    if strange := next((clip for clip, own in zip(judged.clips, owners, strict=True) if len(own) != 1), None):
        raise AmexError(f"clip {strange!r} has no one narration: is this the manifest of epic_kitchens:mir?")
    narration = {clip: judged.captions[own[0]] for clip, own in zip(judged.clips, owners, strict=True)}
    query = {text: number for number, text in enumerate(judged.captions)}
    rows = list(read_rows(sentences, "index", "sentence"))
    if lacking := [row["index"] for row in rows if row["index"] not in narration]:
        raise AmexError(
            f"{sentences} has {plural(len(lacking), 'sentence')} of narrations that are not scored, the first "
            f"{lacking[0]!r}: the challenge takes whole galleries, so that every clip of test needs features"
        )
    # Texts of the list and of the clips may differ in white space; the id tells what is meant.
    columns = [query.get(row["sentence"], query[narration[row["index"]]]) for row in rows]
    matrix = torch.cat([block for _, block in judged.scores.rows()])[columns].T.numpy()
    low, high = float(matrix.min()), float(matrix.max())
    return {
        "version": EPIC_VERSION,
        "challenge": EPIC_CHALLENGE,
        "sls_pt": int(supervision[0]),
        "sls_tl": int(supervision[1]),
        "sls_td": int(supervision[2]),
        "sim_mat": np.ascontiguousarray((matrix - low) / max(high - low, np.finfo(np.float32).tiny), np.float32),
        "vis_ids": np.array(judged.clips),
        "txt_ids": np.array([row["index"] for row in rows]),
    }


def write_epic_mir(path: Path, judged: Judged, sentences: Path, supervision: Sequence[int]) -> None:
    """``epic_mir`` as the pickle that the challenge reads, in its zip where ``path`` ends in ``.zip``."""
    answers = epic_mir(judged, sentences, supervision)
    if path.suffix not in (".zip", ".pkl"):
        raise AmexError(f"--submission epic_mir {path}: the name must end in .zip, as it is handed in, or in .pkl")
    try:
        with replacing(path) as temporary:
            if path.suffix == ".pkl":
                with temporary.open("wb") as handle:
                    pickle.dump(answers, handle, protocol=4)
                return
            with (
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file,
                file.open(EPIC_MEMBER, "w", force_zip64=True) as handle,
            ):
                pickle.dump(answers, handle, protocol=4)
    except OSError as error:
        raise AmexError(f"cannot write {path}: {error.strerror or first_line(error)}") from error


class Answers:
    """What MTEB evaluates in place of a model: answers that are known already, by the ids of its queries."""

    def __init__(self, found: Mapping[str, dict[str, float]], meta: Any) -> None:
        self.found, self.mteb_model_meta = found, meta

    def index(self, corpus: Any, **how: Any) -> None:
        """There is nothing to index."""

    def search(self, queries: Any, *, top_k: int, **how: Any) -> dict[str, dict[str, float]]:
        """The answers, of which there are ``top_k`` for a query."""
        return {query: dict(list(self.found[query].items())[:top_k]) for query in queries["id"]}


def write_mteb(path: Path, judged: Judged, task_name: str, *, model: str, count: int) -> None:
    """The result of one task of MTEB, as MTEB itself computes it from the answers of a model and writes it.

    Args:
        judged: the gallery of the task. MTEB numbers queries and documents; its figures do not depend on how.
        task_name: as ``MSRVTTT2V`` or ``MSRVTTV2T``.
        model: its name.
        count: of its parameters.

    Raises:
        AmexError: if mteb is not installed, the task is no retrieval between texts and videos, or has another gallery.
    """
    try:
        with warnings.catch_warnings(), _quiet("mteb"):
            warnings.simplefilter("ignore")
            import datasets
            import mteb
            from mteb.models.model_meta import ModelMeta
    except ImportError as error:
        raise AmexError(f"--submission mteb:{task_name} needs mteb: pip install 'amex[mteb]'") from error
    with warnings.catch_warnings(), _quiet("mteb"):
        warnings.simplefilter("ignore")
        try:
            task = mteb.get_task(task_name)
        except KeyError as error:
            known = [each.metadata.name for each in mteb.get_tasks(task_types=["Any2AnyRetrieval"], exclude_beta=False)]
            raise AmexError(f"MTEB has no task {task_name!r}{did_you_mean(task_name, known)}") from error
        of_texts = {"t2v": True, "v2t": False}.get(task.metadata.category)
        if of_texts is None or not hasattr(task, "_top_k"):
            raise AmexError(f"MTEB's task {task_name} is no retrieval of videos for texts, nor of texts for videos")
        truth = judged.truth.videos if of_texts else judged.truth.captions
        gallery = len(judged.clips) if of_texts else len(judged.captions)
        split = task.metadata.eval_splits[0]
        sizes = (task.metadata.descriptive_stats or {}).get(split, {}).get("num_samples")
        if sizes not in (None, len(truth) + gallery):
            raise AmexError(
                f"MTEB's {task_name} has {sizes:,} queries and documents, and this split {len(truth) + gallery:,}: "
                "evaluate its own gallery, such as --dataset msrvtt:mteb, with features of every clip"
            )
        scores = judged.scores if of_texts else _turned(judged)
        found = {f"q{query}": {f"d{item}": score for item, score in hits} for query, hits in best_first(scores, 1000)}
        task.dataset = {
            "default": {
                split: {
                    "queries": datasets.Dataset.from_dict({"id": [f"q{query}" for query in range(len(truth))]}),
                    "corpus": datasets.Dataset.from_dict({"id": [f"d{item}" for item in range(gallery)]}),
                    "relevant_docs": {f"q{query}": {f"d{item}": 1 for item in own} for query, own in enumerate(truth)},
                    "top_ranked": None,
                }
            }
        }
        task.data_loaded = True
        known = {name: None for name, field in ModelMeta.model_fields.items() if field.is_required()}
        meta = ModelMeta(
            **known
            | {"name": model, "revision": "none", "n_parameters": count, "framework": ["PyTorch"]}
            | {"modalities": ["text", "video"]}
        )
        result = mteb.evaluate(Answers(found, meta), task, cache=None, show_progress_bar=False)
        try:
            with replacing(path) as temporary:
                result.task_results[0].to_disk(temporary)
        except OSError as error:
            raise AmexError(f"cannot write {path}: {error.strerror or first_line(error)}") from error


def _turned(judged: Judged) -> Any:
    """Scores of videos with captions."""
    from .metrics import Scores

    return Scores(
        block=lambda videos, captions: judged.scores.block(captions, videos).T, shape=judged.scores.shape[::-1]
    )


@contextlib.contextmanager
def _quiet(name: str) -> Any:
    """Lets a library's loggers say errors alone."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
