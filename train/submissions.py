"""Write submissions for benchmarks over a complete gallery: EPIC-Kitchens' challenge, MTEB."""

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

from ..errors import AmexError, did_you_mean, first_line, needs, plural
from ..manifests.published import read_rows
from ..storage import atomic_path
from .rankings import ScoredSplit, best_first

# From "Pickle Submission Format" in https://competitions.codalab.org/competitions/26138.
EPIC_VERSION, EPIC_CHALLENGE, EPIC_MEMBER = "0.1", "multi_instance_retrieval", "test.pkl"


def epic_mir(scored: ScoredSplit, sentences: Path, supervision: Sequence[int]) -> dict[str, Any]:
    """Build a submission to EPIC-Kitchens-100's multi-instance retrieval challenge.

    Args:
        scored: every clip of the split ``test``, with its narration.
        sentences: ``EPIC_100_retrieval_test_sentence.csv``, which lists the texts by narration id.
        supervision: the Supervision Levels Scale of the model (Damen and Wray, 2020): pre-training, training labels,
            training data.

    Returns:
        ``sim_mat`` (videos, texts) float32, all scores scaled together to [0, 1]; ``vis_ids`` and ``txt_ids``, the
        narration ids of both axes; ``version``, ``challenge``; ``sls_pt``, ``sls_tl`` and ``sls_td``.

    Raises:
        AmexError: if a sentence has no narration, or a clip does not have exactly one.
    """
    owners = scored.truth.captions
    if strange := next((clip for clip, own in zip(scored.clips, owners, strict=True) if len(own) != 1), None):
        raise AmexError(f"clip {strange!r} does not have exactly one narration: is this epic_kitchens:mir's manifest?")
    narration = {clip: scored.captions[own[0]] for clip, own in zip(scored.clips, owners, strict=True)}
    query = {text: number for number, text in enumerate(scored.captions)}
    rows = list(read_rows(sentences, "index", "sentence"))
    if lacking := [row["index"] for row in rows if row["index"] not in narration]:
        raise AmexError(
            f"{sentences} has {plural(len(lacking), 'sentence')} without a scored narration, the first {lacking[0]!r}: "
            "the challenge needs the whole gallery, so extract features of every test clip"
        )
        # Texts of the list and of the clips may differ in white space, so match them by id.
    columns = [query.get(row["sentence"], query[narration[row["index"]]]) for row in rows]
    matrix = torch.cat([block for _, block in scored.scores.rows()])[columns].T.numpy()
    low, high = float(matrix.min()), float(matrix.max())
    return {
        "version": EPIC_VERSION,
        "challenge": EPIC_CHALLENGE,
        "sls_pt": int(supervision[0]),
        "sls_tl": int(supervision[1]),
        "sls_td": int(supervision[2]),
        "sim_mat": np.ascontiguousarray((matrix - low) / max(high - low, np.finfo(np.float32).tiny), np.float32),
        "vis_ids": np.array(scored.clips),
        "txt_ids": np.array([row["index"] for row in rows]),
    }


def write_epic_mir(path: Path, scored: ScoredSplit, sentences: Path, supervision: Sequence[int]) -> None:
    """Write ``epic_mir`` as the pickle that the challenge reads, in a zip file if ``path`` ends in ``.zip``."""
    answers = epic_mir(scored, sentences, supervision)
    if path.suffix not in (".zip", ".pkl"):
        raise AmexError(f"--submission epic_mir {path}: the name must end in .zip (to submit) or .pkl")
    try:
        with atomic_path(path) as temporary:
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


class StoredAnswers:
    """Precomputed answers by query id, with the interface of an MTEB model."""

    def __init__(self, answers: Mapping[str, dict[str, float]], meta: Any) -> None:
        self.answers, self.mteb_model_meta = answers, meta

    def index(self, corpus: Any, **how: Any) -> None:
        """Do nothing: the answers are known."""

    def search(self, queries: Any, *, top_k: int, **how: Any) -> dict[str, dict[str, float]]:
        """Return the ``top_k`` answers of each query."""
        return {query: dict(list(self.answers[query].items())[:top_k]) for query in queries["id"]}


def write_mteb(path: Path, scored: ScoredSplit, task_name: str, *, model: str, count: int) -> None:
    """Write MTEB's result for one task, computed by MTEB from the answers of a model.

    Args:
        scored: the gallery of the task. Queries and documents are numbered; MTEB's figures do not depend on the ids.
        task_name: such as ``MSRVTTT2V`` or ``MSRVTTV2T``.
        model: name of the model.
        count: its number of parameters.

    Raises:
        AmexError: if mteb is not installed, the task is not text-video retrieval, or its gallery differs.
    """
    with needs("mteb", f"--submission mteb:{task_name}"), warnings.catch_warnings(), _quiet("mteb"):
        warnings.simplefilter("ignore")
        import datasets
        import mteb
        from mteb.models.model_meta import ModelMeta
    with warnings.catch_warnings(), _quiet("mteb"):
        warnings.simplefilter("ignore")
        try:
            task = mteb.get_task(task_name)
        except KeyError as error:
            known = [each.metadata.name for each in mteb.get_tasks(task_types=["Any2AnyRetrieval"], exclude_beta=False)]
            raise AmexError(f"MTEB has no task {task_name!r}{did_you_mean(task_name, known)}") from error
        of_texts = {"t2v": True, "v2t": False}.get(task.metadata.category)
        if of_texts is None or not hasattr(task, "_top_k"):
            raise AmexError(f"MTEB's task {task_name} does not retrieve videos for texts or texts for videos")
        truth = scored.truth.videos if of_texts else scored.truth.captions
        gallery = len(scored.clips) if of_texts else len(scored.captions)
        split = task.metadata.eval_splits[0]
        sizes = (task.metadata.descriptive_stats or {}).get(split, {}).get("num_samples")
        if sizes not in (None, len(truth) + gallery):
            raise AmexError(
                f"MTEB's {task_name} has {sizes:,} queries and documents, this split has {len(truth) + gallery:,}: "
                "evaluate the task's own gallery, such as --dataset msrvtt:mteb, with features of every clip"
            )
        scores = scored.scores if of_texts else _transposed(scored)
        answers = {f"q{query}": {f"d{item}": score for item, score in hits} for query, hits in best_first(scores, 1000)}
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
        result = mteb.evaluate(StoredAnswers(answers, meta), task, cache=None, show_progress_bar=False)
        try:
            with atomic_path(path) as temporary:
                result.task_results[0].to_disk(temporary)
        except OSError as error:
            raise AmexError(f"cannot write {path}: {error.strerror or first_line(error)}") from error


def _transposed(scored: ScoredSplit) -> Any:
    """Return the scores as (videos, captions)."""
    from .metrics import Scores

    return Scores(
        block=lambda videos, captions: scored.scores.block(captions, videos).T, shape=scored.scores.shape[::-1]
    )


@contextlib.contextmanager
def _quiet(name: str) -> Any:
    """Suppress a library's log messages below errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
