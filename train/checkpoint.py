"""Checkpoints: weights with everything needed to use them. Reading a checkpoint executes no code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..errors import AmexError, first_line
from ..features import Store
from ..manifests import Clip
from .captions import Text
from .concepts import Concepts
from .config import Config, check_config
from .models import RetrievalModel, build_model
from .options import Inputs, ModelOptions
from .rolegraphs import Graphs
from .vocabulary import Vocabulary

# Before format 3, losses and their parameters were parts of the model.
FORMAT = 3


class CheckpointError(AmexError):
    """A file is no checkpoint of amex, or does not fit the features."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model and a record of its training.

    Attributes:
        path: the file.
        config: the complete configuration.
        weights: the state dict of the model.
        fingerprints: fingerprint of every stream that the model reads, by name.
        inputs: the input sizes of the model.
        vocabulary: as JSON; empty if captions come only as token features.
        parser: the parser that made the role graphs; empty if the model reads none.
        concepts: the names of the concepts, as JSON; empty if none were taught.
        sources: absolute paths of the store and the manifest of the training run.
        learned_from: digests of what was read from them; see the function ``learned_from``.
        epoch: number of completed epochs.
        val: validation figures of this checkpoint.
    """

    path: Path
    config: Config
    weights: dict[str, Any]
    fingerprints: dict[str, str]
    inputs: Inputs
    vocabulary: str
    parser: str
    sources: dict[str, str]
    epoch: int
    val: dict[str, float]
    learned_from: dict[str, str] = field(default_factory=dict)
    concepts: str = ""

    def model(self) -> RetrievalModel:
        """Build the trained model, in evaluation mode."""
        model = build_model(self.config.model, self.inputs)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.path}: the weights do not fit its configuration: {first_line(error)}"
            ) from error
        return model.eval()

    def text(self, store: Store, manifest: Path) -> Text:
        """Collect the sources of caption batches. Raise a GraphError if role graphs are missing or another parser's."""
        options = self.config.model
        vocabulary = Vocabulary.from_json(self.vocabulary) if self.vocabulary else None
        graphs = Graphs.beside(manifest, options, self.parser) if options.needs_graphs else None
        stream = store[options.text_stream] if options.text_stream else None
        concepts = None
        if self.concepts and graphs is not None:
            concepts = Concepts(json.loads(self.concepts), graphs)
        return Text(
            stream=stream,
            vocabulary=vocabulary,
            pools_tokens=options.pools_tokens,
            graphs=graphs,
            concepts=concepts,
        )

    def check_features(self, store: Store, *, imported: bool = False) -> None:
        """Raise a CheckpointError if the store lacks a stream or its features were made with other settings.

        Args:
            imported: for imported streams, compare only the feature dimension. Their fingerprint covers the imported
                files, and how the features were made is unknown.
        """
        for name, fingerprint in self.fingerprints.items():
            if name not in store:
                raise CheckpointError(
                    f"{self.path} was trained on stream {name!r}, which {store.path} lacks: extract it there"
                )
            stream = store[name]
            if stream.fingerprint == fingerprint:
                continue
            is_imported = stream.spec.get("network") == "imported"
            if is_imported and imported:
                text = name == self.config.model.text_stream
                width, trained = stream.spec["output"]["shape"][-1], self.inputs.widths["text" if text else name]
                if width != trained:
                    raise CheckpointError(
                        f"{self.path} was trained on {trained} numbers per row of {name!r}, {store.path} has {width}"
                    )
                continue
            remedy = "Extract them with the original settings (see amex features info), or train again"
            if is_imported:
                remedy = "If they were made in the same way, from another file: amex eval --same-features"
            raise CheckpointError(
                f"{self.path} was trained on stream {name!r} of fingerprint {fingerprint[:12]}, but {store.path} has "
                f"{stream.fingerprint[:12]}: its features were made with other settings. {remedy}"
            )


def learned_from(
    store: Store, options: ModelOptions, splits: Mapping[str, Sequence[Clip]], graphs: Graphs | None
) -> dict[str, str]:
    """Return counts and digests of what a model reads of some splits, by name; equal if and only if the data is equal.

    Args:
        options: the model's options, with streams named.
        splits: the clips by split.
        graphs: the role graphs of the captions; None if the model reads none.
    """
    every = [clip for clips in splits.values() for clip in clips]
    captions = list(dict.fromkeys(caption for clip in every for caption in clip.captions))
    learned = {}
    for name, clips in splits.items():
        count = f"{len(clips)} clips, {sum(len(clip.captions) for clip in clips)} captions"
        learned[f"clips of split {name}"] = f"{count}, {digest([dataclasses.asdict(clip) for clip in clips])}"
    for name in options.video_streams:
        learned[f"features of {name}"] = short(store[name].digest([clip.clip_id for clip in every]))
    if options.text_stream:
        learned[f"features of {options.text_stream}"] = short(store[options.text_stream].digest(captions))
    if graphs is not None:
        of_captions = {caption: graphs.graphs[caption] for caption in captions if caption in graphs.graphs}
        learned["role graphs"] = f"{len(of_captions)} by {graphs.parser}, {digest(of_captions)}"
    return learned


def digest(record: Any) -> str:
    """Return the digest of values that JSON can store. The order of keys counts, since that of graph nodes matters."""
    return short(hashlib.sha256(json.dumps(record).encode()).hexdigest())


def short(sha256: str) -> str:
    """Shorten a digest for display."""
    return f"sha256 {sha256[:12]}"


def checkpoint_metadata(
    config: Config,
    *,
    fingerprints: dict[str, str],
    inputs: Inputs,
    text: Text,
    sources: dict[str, str],
    learned_from: dict[str, str],
) -> dict[str, Any]:
    """Return what a checkpoint holds beside weights and the state of the run.

    Args:
        learned_from: the result of the function of that name.
    """
    if text.vocabulary is not None:
        words = digest(text.vocabulary.to_json())
        learned_from = learned_from | {"vocabulary": f"{len(text.vocabulary)} words, {words}"}
    if text.concepts is not None:
        sizes = ", ".join(f"{count} of {kind}" for kind, count in text.concepts.sizes.items())
        learned_from = learned_from | {"concepts": f"{sizes}, {digest(text.concepts.to_json())}"}
    return {
        "format": FORMAT,
        "config": config.to_json(),
        "fingerprints": fingerprints,
        "inputs": dataclasses.asdict(inputs),
        "vocabulary": text.vocabulary.to_json() if text.vocabulary else "",
        "parser": text.graphs.parser if text.graphs else "",
        "concepts": text.concepts.to_json() if text.concepts else "",
        "sources": sources,
        "learned_from": learned_from,
    }


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the contents of a checkpoint file, or of best.pth in a folder. Nothing in the file is executed.

    Raises:
        CheckpointError: if the file is missing or is no checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "best.pth"
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint {path}; amex train writes best.pth and last.pth to its --work-dir"
        )
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of amex train: it does not load as plain weights ({type(error).__name__})"
        ) from error
    metadata = record.get("amex") if isinstance(record, dict) else None
    if not isinstance(metadata, dict) or "state_dict" not in record:
        raise CheckpointError(f"{path} is not a checkpoint of amex train: it lacks amex's metadata")
    if metadata["format"] > FORMAT:
        raise CheckpointError(f"{path} was written by a later amex (format {metadata['format']}): upgrade amex")
    if metadata["format"] < FORMAT:
        raise CheckpointError(
            f"{path} was written by an earlier amex (format {metadata['format']}) and cannot be read: train again"
        )
    return record


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Load a trained model from a file, or from best.pth of a work folder.

    Raises:
        CheckpointError: if the file is missing or is no checkpoint.
        ConfigError: if its configuration is invalid.
    """
    record = read_checkpoint(path)
    metadata = dict(record["amex"])
    metadata.pop("format")
    path = Path(path) / "best.pth" if Path(path).is_dir() else Path(path)
    # A run also saves the parameters of its objective.
    own = {name: x for name, x in record["state_dict"].items() if name.startswith("model.")}
    weights = {name.removeprefix("model."): x for name, x in own.items()}
    metadata["config"] = check_config(metadata["config"], str(path))
    metadata["inputs"] = Inputs(**metadata["inputs"])
    return Checkpoint(path=path, weights=weights, epoch=record["meta"]["epoch"], **metadata)
