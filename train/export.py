"""Export a trained model as a folder for others: weights, configuration, vocabulary, model card.

The folder is independent of the store and manifest of the training; ``amex.train.load`` reads it. Reading executes no
code.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import first_line, plural
from ..features import Store, provenance_lines
from ..features.exchange.card import FILL_IN, code_span, escape
from .checkpoint import Checkpoint, CheckpointError
from .config import check_config
from .coverage import Coverage
from .evaluate import count_parameters
from .models import SpacesModel
from .options import Inputs
from .towers import text_model_name
from .vocabulary import Vocabulary

WEIGHTS, CONFIG, VOCABULARY, CARD = "model.safetensors", "config.json", "vocabulary.json", "README.md"
FORMAT = 1
# Fields of a checkpoint that ``config.json`` lacks: some have their own file, others are paths of the training run.
APART = ("path", "weights", "vocabulary", "sources")
FIGURES = ("R@1", "R@5", "R@10", "MedR", "mAP")


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """The settings of a text stream, needed to encode new texts."""

    name: str
    spec: dict[str, Any]
    provenance: dict[str, Any]


def write_export(
    checkpoint: Checkpoint, store: Store, out: Path, *, facts: Mapping[str, Mapping[str, Any]], onnx: bool = False
) -> list[str]:
    """Write the folder of a model atomically; return the names of its files.

    Args:
        store: contains the streams that the model reads.
        facts: the result of ``describe_stream`` for each of these streams, for the model card.
        onnx: also write ONNX graphs of the text side and the video side.

    Raises:
        CheckpointError: if ``out`` exists or cannot be written.
        AmexError: if the model cannot be expressed in ONNX.
    """
    from safetensors.torch import save_file

    if out.exists():
        raise CheckpointError(f"{out} exists already: name another folder with --out")
    options = checkpoint.config.model
    record = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    record = {name: value for name, value in record.items() if name not in APART}
    record |= {"config": checkpoint.config.to_json(), "inputs": dataclasses.asdict(checkpoint.inputs)}
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
    """Read a model that ``write_export`` wrote, and the settings of its text streams by name.

    Raises:
        CheckpointError: if files are missing or invalid.
        ConfigError: if this version of amex cannot use the configuration.
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
        settings = {name: StreamSettings(name=name, **entry) for name, entry in config["text_stream"].items()}
    except (OSError, UnicodeDecodeError, SafetensorError) as error:
        raise CheckpointError(f"cannot read the exported model {folder}: {first_line(error)}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{where} is not the configuration of an exported model: {type(error).__name__}: {first_line(error)}"
        ) from error
    return checkpoint, settings


def _vocabulary(path: Path) -> str:
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8")
    try:
        Vocabulary.from_json(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"{path} is not a vocabulary: {first_line(error)}") from error
    return text


def card(checkpoint: Checkpoint, name: str, facts: Mapping[str, Mapping[str, Any]], *, onnx: bool) -> str:
    """Build the model card: Markdown with the YAML header that model hubs read."""
    options = checkpoint.config.model
    model = checkpoint.model()
    product = isinstance(model, SpacesModel)
    score = "the dot product of two vectors" if product else "computed from the parts of a text and of a video"
    sections = [
        "---\nlicense:  # to be filled in: under which licence you share this model\nlibrary_name: amex\n"
        "tags:\n- text-video-retrieval\n- video\n- amex\n---",
        f"# {escape(name)}",
        f"{FILL_IN}: what the model is for, and what it was trained on in words.",
        f"A text-video retrieval model of amex: {code_span(options.name)} with "
        f"{plural(count_parameters(model), 'parameter')}. It reads features of videos, not frames. "
        f"The score of a text and a video is {score}.",
        "## Trained on",
        "\n".join(
            [f"- {escape(what)}: {escape(of)}" for what, of in checkpoint.learned_from.items()]
            + [f"- epochs: {checkpoint.epoch}, seed {checkpoint.config.train.seed}"]
        ),
        f"`{CONFIG}` has every setting.",
        "## Figures",
        *_figures(checkpoint),
        "## How to load it",
        *_loading(checkpoint, name, onnx=onnx),
        "## Streams that it reads",
        "Features made with other settings are refused, because their fingerprint differs.",
        *extraction_lines(facts),
    ]
    for stream, stream_facts in facts.items():
        sections += [f"### {code_span(stream)}", "\n".join(provenance_lines(stream_facts))]
    sections += [
        "## Licence",
        f"{FILL_IN}. amex does not know the licence of the training videos and captions, nor that of the weights that "
        "made the features. It may restrict the use of this model.",
    ]
    return "\n\n".join(sections) + "\n"


def _figures(checkpoint: Checkpoint) -> list[str]:
    """Describe the figures that chose the checkpoint, and those that ``amex eval`` wrote beside it."""
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
                f"| {escape(record['split'])}{f', {escape(coverage.gallery)}' if coverage.gallery else ''}"
                f"{', equal captions merged' if record['merged'] else ''} | {way.replace('_', ' ')} "
                f"| {figures['queries']:,} | {figures['gallery']:,} | "
                + " | ".join(f"{figures[key]:.1f}" for key in FIGURES)
                + f" | {record['rsum']:.1f} |"
                for way in ("text_to_video", "video_to_text")
                for figures in [record[way]]
            ]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the file of another program
    if rows:
        head = ["split", "direction", "queries", "gallery", *FIGURES, "rsum"]
        sections.append("\n".join([f"| {' | '.join(head)} |", "|" + "---|" * len(head), *rows]))
        sections.append("In percent, except MedR (a median position); ties are broken at random. By `amex eval`.")
    else:
        sections.append("No test figures: before an export, `amex eval` writes them beside the checkpoint.")
    return sections


def _beside(checkpoint: Checkpoint) -> Path:
    return checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent


def _loading(checkpoint: Checkpoint, name: str, *, onnx: bool) -> list[str]:
    inputs, options = checkpoint.inputs, checkpoint.config.model
    lines = [
        "import numpy as np",
        "",
        "import amex",
        "",
        f"model = amex.load({json.dumps(name)})  # this folder",
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
    texts = "Texts need only the vocabulary."
    if options.text_stream:
        texts = (
            f"Texts are encoded as in stream {code_span(options.text_stream)}, by the model in its settings below; "
            "use `load(..., text_encoder=MODEL)` if amex does not find it."
        )
    elif options.needs_graphs:
        texts = f"A text is parsed into its roles by {escape(checkpoint.parser)}, as the training captions were."
    sections = ["```python\n" + "\n".join(lines) + "\n```", texts, "`embed_video` also reads a store of amex."]
    if onnx:
        sections.append(
            "`onnx/text.onnx` and `onnx/video.onnx` return the `vectors` (items, dim) of texts and of videos. Their "
            "dot products are scores; `onnx/inputs.json` describes their inputs."
        )
    return sections


def extraction_lines(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Describe how to make the streams: by a command if amex extracted them, else by their import."""
    names: list[str] = []
    imported: list[str] = []
    for name, stream_facts in facts.items():
        network = str(stream_facts["spec"].get("network", name))
        if "compute" not in stream_facts["spec"]:
            imported.append(code_span(name))
        else:
            names.append(name if stream_facts["of"] == "captions" or network == name else f"{name}={network}")
    sections = []
    if names:
        options = " ".join(f"--stream {name}" for name in names)
        if (encoder := text_model_name(str(facts.get("text_bert", {}).get("weights", "")))) and "text_bert" in names:
            options += f" --text-encoder {shlex.quote(encoder)}"
        sections += [
            "This command makes them for your own videos. If settings differ from those of `amex streams`, add "
            "`--set STREAM.KEY=VALUE`:",
            f"```sh\namex extract --manifest M.jsonl --videos VIDEOS --store S.zarr {options}\n```",
        ]
    if imported:
        sections.append(f"Imported from other programs, by `amex features import`: {', '.join(imported)}.")
    return sections
