"""Checkpoints: weights with all that is needed to use them, read without executing anything."""

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

# Before format 3 the losses and what they learn were parts of the model.
FORMAT = 3


class CheckpointError(AmexError):
    """A file is no checkpoint of amex, or not one for these features."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model and what it was trained on.

    Attributes:
        path: the file it came from.
        fingerprints: of every stream the model reads.
        inputs: what the model was built for.
        vocabulary: as JSON; empty where captions come as token features alone.
        parser: by whom the role graphs of captions were made; empty where there are none.
        concepts: the names that it was taught, as JSON; empty where there are none.
        sources: the store and the manifest of the training run, as absolute paths.
        learned_from: what was read from these, by name, as ``learned_from`` gives it.
        epoch: how many are behind it.
        val: the figures on the validation split that chose it.
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
        """The trained model, ready to encode."""
        model = build_model(self.config.model, self.inputs)
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"{self.path}: the weights do not fit its configuration: {first_line(error)}"
            ) from error
        return model.eval()

    def text(self, store: Store, manifest: Path) -> Text:
        """What to make batches of captions from. Raises GraphError if role graphs are missing, or another parser's."""
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
            makes_words=options.makes_words,
            graphs=graphs,
            concepts=concepts,
        )

    def check_features(self, store: Store, *, imported: bool = False) -> None:
        """Raises CheckpointError if the store lacks a stream, or has features made in another way.

        Args:
            imported: streams that were imported need the width of the training run's alone: the files they came from
                are part of their fingerprints, how these were made is not known.
        """
        for name, fingerprint in self.fingerprints.items():
            if name not in store:
                raise CheckpointError(
                    f"{self.path} was trained on stream {name!r}, which {store.path} lacks: extract it there"
                )
            stream = store[name]
            if stream.fingerprint == fingerprint:
                continue
            of_files = stream.spec.get("network") == "imported"
            if of_files and imported:
                text = name == self.config.model.text_stream
                width, known = stream.spec["output"]["shape"][-1], self.inputs.widths["text" if text else name]
                if width != known:
                    raise CheckpointError(
                        f"{self.path} was trained on {known} numbers a row of {name!r}, {store.path} has {width}"
                    )
                continue
            remedy = "Extract them as they were (amex features info shows the settings), or train again"
            if of_files:
                remedy = "If another file holds features that were made in the same way: amex eval --same-features"
            raise CheckpointError(
                f"{self.path} was trained on stream {name!r} of fingerprint {fingerprint[:12]}, but that of "
                f"{store.path} is {stream.fingerprint[:12]}: features made in another way. {remedy}"
            )


def learned_from(
    store: Store, options: ModelOptions, splits: Mapping[str, Sequence[Clip]], graphs: Graphs | None
) -> dict[str, str]:
    """What a model reads of some splits, by name, each as counts and a digest: equal exactly if the same is read.

    Args:
        options: those of the model, its streams named.
        splits: the clips, by the name of their split.
        graphs: the role graphs of the captions, where the model needs them.
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
    """Of plain values, as JSON has them. The order of keys counts: that of a role graph's nodes decides."""
    return short(hashlib.sha256(json.dumps(record).encode()).hexdigest())


def short(sha256: str) -> str:
    """A digest that a person can compare."""
    return f"sha256 {sha256[:12]}"


def describe(
    config: Config,
    *,
    fingerprints: dict[str, str],
    inputs: Inputs,
    text: Text,
    sources: dict[str, str],
    learned_from: dict[str, str],
) -> dict[str, Any]:
    """What a checkpoint holds beside weights and the state of a run.

    Args:
        learned_from: as the function of that name gives it.
    """
    if text.vocabulary is not None:
        words = digest(text.vocabulary.to_json())
        learned_from = learned_from | {"vocabulary": f"{len(text.vocabulary)} words, {words}"}
    if text.concepts is not None:
        sizes = ", ".join(f"{count} of {kind}" for kind, count in text.concepts.sizes.items())
        learned_from = learned_from | {"concepts": f"{sizes}, {digest(text.concepts.to_json())}"}
    return {
        "format": FORMAT,
        "config": config.plain(),
        "fingerprints": fingerprints,
        "inputs": dataclasses.asdict(inputs),
        "vocabulary": text.vocabulary.to_json() if text.vocabulary else "",
        "parser": text.graphs.parser if text.graphs else "",
        "concepts": text.concepts.to_json() if text.concepts else "",
        "sources": sources,
        "learned_from": learned_from,
    }


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A checkpoint as it lies in its file.

    Raises:
        CheckpointError: if there is none, or it is something else. Nothing in the file is executed.
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
    known = record.get("amex") if isinstance(record, dict) else None
    if not isinstance(known, dict) or "state_dict" not in record:
        raise CheckpointError(f"{path} is not a checkpoint of amex train: it holds other things")
    if known["format"] > FORMAT:
        raise CheckpointError(f"{path} was written by a later amex (format {known['format']}): upgrade amex")
    if known["format"] < FORMAT:
        raise CheckpointError(
            f"{path} was written by an earlier amex (format {known['format']}), whose models had their losses in them: "
            "train it again"
        )
    return record


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """A trained model from a file, or from the best.pth of a work folder. Raises CheckpointError, ConfigError."""
    record = read_checkpoint(path)
    known = dict(record["amex"])
    known.pop("format")
    path = Path(path) / "best.pth" if Path(path).is_dir() else Path(path)
    # Beside the model a run keeps what its objective learns.
    own = {name: x for name, x in record["state_dict"].items() if name.startswith("model.")}
    weights = {name.removeprefix("model."): x for name, x in own.items()}
    known["config"] = check_config(known["config"], str(path))
    known["inputs"] = Inputs(**known["inputs"])
    return Checkpoint(path=path, weights=weights, epoch=record["meta"]["epoch"], **known)
