"""Score HGR's official files: a folder with a trained model, features, captions and role graphs."""

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
from .data import concatenate
from .metrics import Scores, Ties, Truth, evaluate
from .models.hgr import HGR, LEVELS
from .options import HGR as HGROptions
from .options import Inputs
from .rolegraphs import graph_tensors

# Videos, and captions, in a batch.
BATCH = 64
FRAMES = "frames"  # our name of the only feature stream
UNKNOWN = 2  # the number of unknown words in word2int.json
FILES = (
    *("model.json", "checkpoint.th", "word2int.json", "ref_captions.json", "sent2rolegraph.augment.json"),
    *("tst_names.npy", "tst_ft.hdf5"),
)


class OfficialError(AmexError):
    """A folder does not hold HGR's files, or describes a model that amex cannot compute."""


@dataclass(frozen=True, kw_only=True)
class OfficialScores:
    """Scores by level, (videos, captions). Equal captions are merged."""

    levels: dict[str, np.ndarray]
    videos: list[str]
    captions: list[str]
    references: dict[str, list[str]]

    @property
    def fused(self) -> np.ndarray:
        """(videos, captions) mean of the levels, by which HGR ranks."""
        return np.mean([self.levels[level] for level in LEVELS], axis=0)

    def evaluate(self, ties: Ties) -> dict[str, Any]:
        """Compute the figures of ``metrics.evaluate`` as HGR does: equal captions are one query."""
        number = {caption: index for index, caption in enumerate(self.captions)}
        own = [[number[caption] for caption in dict.fromkeys(self.references[video])] for video in self.videos]
        return evaluate(Scores.of(self.fused.T), Truth(captions=own, queries=len(self.captions)), ties=ties)

    def save(self, path: Path) -> None:
        """Write an npz file: ``sent``, ``verb`` and ``noun``, (videos, captions), and the names of both axes."""
        np.savez_compressed(path, **self.levels, videos=np.array(self.videos), captions=np.array(self.captions))


def score_official(folder: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> OfficialScores:
    """Score every video and caption of the folder's test split with its own model.

    Args:
        folder: contains ``model.json``, ``checkpoint.th``, ``word2int.json``, ``ref_captions.json``,
            ``sent2rolegraph.augment.json``, ``tst_names.npy`` and ``tst_ft.hdf5`` of the official program.
        progress: receives the number of finished captions and the total.

    Raises:
        OfficialError, GraphError: naming the file.
    """
    if absent := [name for name in FILES if not (folder / name).is_file()]:
        raise OfficialError(f"{folder} is not a folder of HGR's files: it lacks {', '.join(absent)}")
    settings = _json(folder / "model.json")
    model = load_official(folder / "checkpoint.th", settings, folder / "model.json")
    try:
        names = [str(name) for name in np.load(folder / "tst_names.npy", allow_pickle=False)]
    except (ValueError, EOFError, TypeError) as error:
        raise OfficialError(f"{folder / 'tst_names.npy'} is not an array of names: {first_line(error)}") from error
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
                frames = [_frames(file, name, most) for name in names[begin : begin + BATCH]]
                padded = pad(concatenate([{"values": values} for values in frames]), range(len(frames)))
                videos.append(model.encode_videos(model.to_device({FRAMES: tensors(padded)})))
        rows: dict[str, list[torch.Tensor]] = {level: [] for level in LEVELS}
        for begin in range(0, len(captions), BATCH):
            batch = captions[begin : begin + BATCH]
            texts = model.encode_texts(graph_tensors(batch, graphs, lambda word: numbers.get(word, UNKNOWN), **sizes))
            scores = [model.level_scores(part, texts) for part in videos]
            for level in LEVELS:
                rows[level].append(torch.cat([part[level] for part in scores], dim=1))
            progress(begin + len(batch), len(captions))
    return OfficialScores(
        levels={level: torch.cat(parts).T.numpy() for level, parts in rows.items()},
        videos=names,
        captions=captions,
        references={name: list(references[name]) for name in names},
    )


def load_official(path: Path, settings: dict[str, Any], source: Path) -> HGR:
    """Load an official checkpoint. ``settings`` are the contents of its ``model.json``, ``source`` is the path."""
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
        if other := [
            f"{name}={value!r} (needs {required!r})" for name, (value, required) in known.items() if value != required
        ]:
            raise OfficialError(f"{source} describes an HGR that amex does not support: {', '.join(other)}")
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
        model.load_state_dict(rename_weights(record))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise OfficialError(f"{path} is not a checkpoint of {source}: {first_line(error)}") from error
    return model.eval()


# Names of the official modules, and of ours.
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


def rename_weights(record: dict[str, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the weights of an official checkpoint under our names."""
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
    """Read the frames of a video, at most ``most`` evenly spaced ones, as HGR's reader selects them."""
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
