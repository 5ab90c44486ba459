"""HGR's official files: a folder of a trained model, features, captions and role graphs to its scores."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from ..errors import AmexError, first_line
from ..features.dataset import pad
from ..language import read_graphs
from .captions import tensors
from .data import joined
from .metrics import Scores, Ties, Truth, evaluate
from .models.hgr import HGR, LEVELS
from .options import HGR as HGROptions
from .options import Inputs
from .rolegraphs import graph_tensors

# Videos and captions a batch.
BATCH = 64
FRAMES = "frames"  # what the one stream of features is called here
UNKNOWN = 2  # the number of unknown words in word2int.json
FILES = (
    *("model.json", "checkpoint.th", "word2int.json", "ref_captions.json", "sent2rolegraph.augment.json"),
    *("tst_names.npy", "tst_ft.hdf5"),
)


class OfficialError(AmexError):
    """A folder is not one of HGR's, or holds what amex does not compute."""


@dataclass(frozen=True, kw_only=True)
class OfficialScores:
    """(videos, captions) of each level; equal captions are one."""

    levels: dict[str, np.ndarray]
    videos: list[str]
    captions: list[str]
    references: dict[str, list[str]]

    @property
    def fused(self) -> np.ndarray:
        """(videos, captions): the mean of the levels, by which HGR ranks."""
        return np.mean([self.levels[level] for level in LEVELS], axis=0)

    def evaluate(self, ties: Ties) -> dict[str, Any]:
        """The figures of ``metrics.evaluate`` as HGR counts: equal captions are one query."""
        number = {caption: index for index, caption in enumerate(self.captions)}
        own = [[number[caption] for caption in dict.fromkeys(self.references[video])] for video in self.videos]
        return evaluate(Scores.of(self.fused.T), Truth(captions=own, queries=len(self.captions)), ties=ties)

    def save(self, path: Path) -> None:
        """As npz: ``sent``, ``verb`` and ``noun`` (videos, captions), and the names of both axes."""
        np.savez_compressed(path, **self.levels, videos=np.array(self.videos), captions=np.array(self.captions))


def score_official(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> OfficialScores:
    """The scores of every video and caption of the folder's test split, by its own model.

    Args:
        folder: with the official program's ``model.json``, ``checkpoint.th``, ``word2int.json``, ``ref_captions.json``,
            ``sent2rolegraph.augment.json``, ``tst_names.npy`` and ``tst_ft.hdf5``.
        progress: called with the number of captions done, and of all.

    Raises:
        OfficialError, GraphError: naming the file.
    """
    if absent := [name for name in FILES if not (folder / name).is_file()]:
        raise OfficialError(f"{folder} is no folder of HGR's files: it lacks {', '.join(absent)}")
    settings = _json(folder / "model.json")
    model = load_official(folder / "checkpoint.th", settings, folder / "model.json")
    try:
        names = [str(name) for name in np.load(folder / "tst_names.npy", allow_pickle=False)]
    except (ValueError, EOFError, TypeError) as error:
        raise OfficialError(f"{folder / 'tst_names.npy'} is no array of names: {first_line(error)}") from error
    references = _json(folder / "ref_captions.json")
    if unknown := [name for name in names if name not in references]:
        raise OfficialError(f"{folder / 'ref_captions.json'} has no captions of {unknown[0]!r}")
    captions = list(dict.fromkeys(caption for name in names for caption in references[name]))
    graphs = read_graphs(folder / "sent2rolegraph.augment.json").graphs
    numbers = _json(folder / "word2int.json")
    options = model.options
    sizes = {"words": settings.get("max_words_in_sent", 30), "verbs": options.verbs, "nouns": options.nouns}
    most = settings.get("max_frames_in_video", 20)
    with torch.inference_mode():
        videos: list[dict[str, Any]] = []
        with _features(folder / "tst_ft.hdf5") as file:
            for begin in range(0, len(names), BATCH):
                some = [_frames(file, name, most) for name in names[begin : begin + BATCH]]
                padded = pad(joined([{"values": values} for values in some]), range(len(some)))
                videos.append(model.encode_videos(model.to_device({FRAMES: tensors(padded)})))
        rows: dict[str, list[torch.Tensor]] = {level: [] for level in LEVELS}
        for begin in range(0, len(captions), BATCH):
            batch = captions[begin : begin + BATCH]
            texts = model.encode_texts(graph_tensors(batch, graphs, lambda word: numbers.get(word, UNKNOWN), **sizes))
            found = [model.level_scores(part, texts) for part in videos]
            for level in LEVELS:
                rows[level].append(torch.cat([part[level] for part in found], dim=1))
            progress(begin + len(batch), len(captions))
    return OfficialScores(
        levels={level: torch.cat(parts).T.numpy() for level, parts in rows.items()},
        videos=names,
        captions=captions,
        references={name: list(references[name]) for name in names},
    )


def load_official(path: Path, settings: dict[str, Any], source: Path) -> HGR:
    """The model of an official checkpoint. ``settings`` are those of its ``model.json``, called ``source``."""
    try:
        video, text = settings["subcfgs"]["video_encoder"], settings["subcfgs"]["text_encoder"]
        known = {
            "video_encoder.num_levels": (video["num_levels"], 3),
            "video_encoder.share_enc": (video["share_enc"], False),
            "text_encoder.rnn_type": (text["rnn_type"], "gru"),
            "text_encoder.bidirectional": (text["bidirectional"], True),
            "text_encoder.rnn_hidden_size": (text["rnn_hidden_size"], video["dim_embed"]),
            "text_encoder.gcn_attention": (text["gcn_attention"], True),
        }
        if other := [f"{name}={has!r} (needs {want!r})" for name, (has, want) in known.items() if has != want]:
            raise OfficialError(f"{source} describes an HGR that amex does not have: {', '.join(other)}")
        options = HGROptions(
            dim=video["dim_embed"],
            word_dim=text["dim_word"],
            dropout=video["dropout"],
            text_dropout=text["dropout"],
            text_layers=text["num_layers"],
            role_layers=text["gcn_num_layers"],
            role_dropout=text["gcn_dropout"],
            verbs=settings["num_verbs"],
            nouns=settings["num_nouns"],
            fusion=settings["attn_fusion"],
            sharpness=settings["simattn_sigma"],
            streams=[FRAMES],
        )
        inputs = Inputs(widths={FRAMES: sum(video["dim_fts"]), "text": options.word_dim}, words=text["num_words"])
        model = HGR(options, inputs)
    except (KeyError, TypeError, ValueError) as error:
        raise OfficialError(f"{source} is not a model.json of HGR: {type(error).__name__} {error}") from error
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(renamed(record))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise OfficialError(f"{path} is not a checkpoint of {source}: {first_line(error)}") from error
    return model.eval()


# The official names of modules, and ours.
NAMES = {
    "video_encoder": {
        **{f"level_embeds.{number}": f"rows.levels.{level}.{FRAMES}" for number, level in enumerate(LEVELS)},
        "ft_attn": "frame_attention",
    },
    "text_encoder": {
        "embedding.we": "text.reader.embedding",
        "rnn": "text.rnn",
        "ft_attn": "text.attention",
        "role_embedding": "text.roles",
        "gcn.layers": "text.layers",
    },
}
LAYER_NAMES = {"ctx_layer": "context", "layernorm": "norm", "edge_attn_query": "query", "edge_attn_key": "key"}


def renamed(record: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """An official checkpoint's weights under our names."""
    weights = {}
    for part, names in NAMES.items():
        for name, value in record[part].items():
            official = next((official for official in names if name.startswith(f"{official}.")), None)
            if official is None:
                raise KeyError(f"{part}.{name}")
            rest = ".".join(LAYER_NAMES.get(word, word) for word in name.removeprefix(f"{official}.").split("."))
            weights[f"{names[official]}.{rest}"] = value
    return weights


def _features(path: Path) -> h5py.File:
    try:
        return h5py.File(path)
    except OSError as error:
        raise OfficialError(f"{path} is not HDF5: {first_line(error)}") from error


def _frames(file: h5py.File, name: str, most: int) -> np.ndarray:
    """A video's frames; of more than ``most``, so many evenly spaced, as HGR's reader picks them."""
    key = name.replace("/", "_")
    if key not in file:
        raise OfficialError(f"{file.filename} has no features of {name!r}")
    values = file[key][...].astype(np.float32)
    if len(values) > most:
        values = values[np.round(np.linspace(0, len(values) - 1, most)).astype(int)]
    return values


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise OfficialError(f"{path} is not JSON: {error}") from error
