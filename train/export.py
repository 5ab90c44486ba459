"""A trained model as a folder that others can use: weights, configuration, vocabulary, a model card.

The folder needs neither the store nor the manifest of the training: ``amex.train.load`` reads it. Nothing in it is
executed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import first_line
from ..features import Store, made_lines
from ..features.exchange.card import FILL_IN, code, plain
from .checkpoint import Checkpoint, CheckpointError
from .config import check_config
from .coverage import Coverage
from .evaluate import parameters
from .models import SpacesModel
from .options import Inputs
from .vocabulary import Vocabulary

WEIGHTS, CONFIG, VOCABULARY, CARD = "model.safetensors", "config.json", "vocabulary.json", "README.md"
FORMAT = 1
# What of a checkpoint is not in ``config.json``: what has a file of its own, and where the training run lay.
APART = ("path", "weights", "vocabulary", "sources")
FIGURES = ("R@1", "R@5", "R@10", "MedR", "mAP")


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """How a stream was made: what a new text is encoded by."""

    name: str
    spec: dict[str, Any]
    provenance: dict[str, Any]


def write_export(
    checkpoint: Checkpoint, store: Store, out: Path, *, facts: Mapping[str, Mapping[str, Any]], onnx: bool = False
) -> list[str]:
    """Writes the folder of a model, which exists once it is whole; returns the names of its files.

    Args:
        store: has the streams that the model reads, and their settings.
        facts: of each of these streams what its lines of the card are made from, as of ``describe_stream``.
        onnx: also write the text side and the video side as ONNX graphs.

    Raises:
        CheckpointError: if ``out`` exists or cannot be written.
        AmexError: if the model has no ONNX form.
    """
    from safetensors.torch import save_file

    if out.exists():
        raise CheckpointError(f"{out} exists already: name another folder with --out")
    options = checkpoint.config.model
    record = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    record = {name: value for name, value in record.items() if name not in APART}
    record |= {"config": checkpoint.config.plain(), "inputs": dataclasses.asdict(checkpoint.inputs)}
    texts = [options.text_stream] if options.text_stream else []
    settings = {name: {"spec": store[name].spec, "provenance": store[name].provenance} for name in texts}
    config = {"format": FORMAT, "amex": version("amex"), "checkpoint": record, "text_stream": settings}
    weights = {name: tensor.detach().clone().contiguous() for name, tensor in checkpoint.weights.items()}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
            folder = Path(temporary) / "model"
            folder.mkdir()
            save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
            (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
            if checkpoint.vocabulary:
                (folder / VOCABULARY).write_text(checkpoint.vocabulary, encoding="utf-8")
            if onnx:
                from .onnx_graphs import write_graphs

                write_graphs(checkpoint, folder)
            (folder / CARD).write_text(card(checkpoint, out.name, facts, onnx=onnx), encoding="utf-8")
            os.replace(folder, out)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or first_line(error)}") from error
    return sorted(path.name for path in out.iterdir())


def read_export(folder: Path) -> tuple[Checkpoint, dict[str, StreamSettings]]:
    """A model that ``write_export`` wrote, and by name the stream of text that it reads, if any.

    Raises:
        CheckpointError: if files are missing, or are something else.
        ConfigError: if its configuration is none of this amex.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = folder / CONFIG
    try:
        config = json.loads(where.read_text(encoding="utf-8"))
        if config["format"] > FORMAT:
            raise CheckpointError(f"{folder} was written by a later amex (format {config['format']}): upgrade amex")
        record = dict(config["checkpoint"])
        checked = check_config(record.pop("config"), str(where))
        inputs = Inputs(**record.pop("inputs"))
        checkpoint = Checkpoint(
            path=folder,
            weights=load_file(folder / WEIGHTS),
            config=checked,
            inputs=dataclasses.replace(inputs, objects=tuple(inputs.objects)),
            vocabulary=_vocabulary(folder / VOCABULARY),
            sources={},
            **record,
        )
        settings = {name: StreamSettings(name=name, **known) for name, known in config["text_stream"].items()}
    except (OSError, UnicodeDecodeError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the exported model {folder}: {first_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is not of a model that amex train export wrote: {type(error).__name__}: {first_line(error)}"
        ) from error
    return checkpoint, settings


def _vocabulary(path: Path) -> str:
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    try:
        Vocabulary.from_json(text)
    except Exception as error:  # tokenizers raises no other kind
        raise CheckpointError(f"{path} is no vocabulary: {first_line(error)}") from error
    return text


def card(checkpoint: Checkpoint, name: str, facts: Mapping[str, Mapping[str, Any]], *, onnx: bool) -> str:
    """The model card, as Markdown that begins with the YAML that hubs of models read."""
    options = checkpoint.config.model
    model = checkpoint.model()
    product = isinstance(model, SpacesModel)
    score = "the dot product of two vectors" if product else "computed from the parts of a text and of a video"
    sections = [
        "---\nlicense:  # to be filled in: under which licence you share this model\nlibrary_name: amex\n"
        "tags:\n- text-video-retrieval\n- video\n- amex\n---",
        f"# {plain(name)}",
        f"{FILL_IN}: what the model is for, and what it was trained on in words.",
        f"A text-video retrieval model of amex: {code(options.name)} with {parameters(model):,} parameters. It reads "
        f"features of videos, no frames. The score of a text and a video is {score}.",
        "## Trained on",
        "\n".join(
            [f"- {plain(what)}: {plain(of)}" for what, of in checkpoint.learned_from.items()]
            + [f"- epochs: {checkpoint.epoch}, seed {checkpoint.config.train.seed}"]
        ),
        f"`{CONFIG}` has every setting.",
        "## Figures",
        *_figures(checkpoint),
        "## How to load it",
        *_loading(checkpoint, name, onnx=onnx),
        "## The streams that it reads",
        "Features made in another way are refused: their fingerprint differs.",
        *_extraction(facts),
    ]
    for stream, known in facts.items():
        sections += [f"### {code(stream)}", "\n".join(made_lines(known))]
    sections += [
        "## Licence",
        f"{FILL_IN}. amex knows neither the licence of the videos and captions that the model was trained on, nor that "
        "of the weights behind its features: it may restrict the use of this model.",
    ]
    return "\n\n".join(sections) + "\n"


def _figures(checkpoint: Checkpoint) -> list[str]:
    """The figures that chose the checkpoint, and those that ``amex eval`` left beside it."""
    config = checkpoint.config
    sections = []
    if checkpoint.val:
        names = [name for name in ("t2v R@1", "t2v R@5", "t2v R@10", "v2t R@1", "rsum") if name in checkpoint.val]
        values = ", ".join(f"{name} {checkpoint.val[name]:.1f}" for name in names)
        chose = "which chose the checkpoint" if config.train.keep != "last" else "the last checkpoint"
        sections.append(f"On split `{config.data.val}`, {chose}: {values}.")
    rows = []
    for path in sorted(_beside(checkpoint).glob("eval-*.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            coverage = Coverage(**record["coverage"])
            rows += [
                f"| {plain(record['split'])}{f', {plain(coverage.gallery)}' if coverage.gallery else ''}"
                f"{', equal captions merged' if record['merged'] else ''} | {way.replace('_', ' ')} "
                f"| {figures['queries']:,} | {figures['gallery']:,} | "
                + " | ".join(f"{figures[key]:.1f}" for key in FIGURES)
                + f" | {record['rsum']:.1f} |"
                for way in ("text_to_video", "video_to_text")
                for figures in [record[way]]
            ]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # another program's file
    if rows:
        head = ["split", "direction", "queries", "gallery", *FIGURES, "rsum"]
        sections.append("\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]))
        sections.append("Percent, but for MedR, a median position; ties count as broken at random. By `amex eval`.")
    else:
        sections.append("No test figures are known: `amex eval` writes them beside the checkpoint before an export.")
    return sections


def _beside(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _loading(checkpoint: Checkpoint, name: str, *, onnx: bool) -> list[str]:
    inputs, options = checkpoint.inputs, checkpoint.config.model
    lines = [
        "import numpy as np",
        "",
        "from amex.train import load",
        "",
        f"model = load({json.dumps(name)})  # this folder",
        "videos = model.embed_video(",
        "    {",
    ]
    for stream in options.video_streams:
        width = inputs.widths[stream]
        if stream in inputs.objects:
            lines += [
                f"        {json.dumps(stream)}: [",
                "            {",
                f'                "values": np.zeros((4, 3, {width}), np.float32),  # rows, objects, width',
                '                "boxes": np.zeros((4, 3, 4), np.float32),  # pixels',
                '                "scores": np.zeros((4, 3), np.float32),',
                '                "counts": np.full(4, 3),',
                '                "frame_size": np.full((4, 2), 100),',
                "            }",
                "        ],",
            ]
        else:
            lines.append(f"        {json.dumps(stream)}: np.zeros((1, 4, {width}), np.float32),  # clips, rows, width")
    lines += ["    },", '    ["a.mp4"],', ")", 'print(model.rank(["a dog chases a cat"], videos, top=1))']
    texts = "Texts need the vocabulary alone."
    if options.text_stream:
        texts = (
            f"A text is encoded as those of stream {code(options.text_stream)} were, by the model that its settings "
            "below name: `load(..., text_encoder=MODEL)` where amex does not find it."
        )
    elif options.needs_graphs:
        texts = f"A text is parsed into its roles by {plain(checkpoint.parser)}, as the training captions were."
    sections = ["```python\n" + "\n".join(lines) + "\n```", texts, "`embed_video` also reads a store of amex."]
    if onnx:
        sections.append(
            "`onnx/text.onnx` and `onnx/video.onnx` give the `vectors` (items, dim) of texts and of videos, whose dot "
            "products are scores; `onnx/inputs.json` has what goes in."
        )
    return sections


def _extraction(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How the streams are made: those that amex extracted by a command, others by whoever made them."""
    names: list[str] = []
    imported: list[str] = []
    for name, known in facts.items():
        network = str(known["spec"].get("network", name))
        if "compute" not in known["spec"]:
            imported.append(code(name))
        else:
            names.append(name if known["of"] == "captions" or network == name else f"{name}={network}")
    sections = []
    if names:
        options = " ".join(f"--stream {name}" for name in names)
        sections += [
            "Of your own videos they are made by this command. Settings that differ from those of `amex streams` are "
            "given by `--set STREAM.KEY=VALUE`:",
            f"```sh\namex extract --manifest M.jsonl --videos VIDEOS --store S.zarr {options}\n```",
        ]
    if imported:
        sections.append(f"Imported from other programs, by `amex features import`: {', '.join(imported)}.")
    return sections
