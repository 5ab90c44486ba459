"""The two sides of a model as ONNX graphs: texts and videos to vectors whose dot products are scores."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AmexError, first_line
from .checkpoint import Checkpoint
from .models import Embeddings, SpacesModel
from .models.layers import Standardize
from .options import Inputs, ModelOptions

FOLDER, INPUTS, OUTPUT = "onnx", "inputs.json", "vectors"
# Every axis of an example has a length of its own: torch would take equal ones for one axis, and 1 for a constant.
LENGTHS = {"texts": 2, "tokens": 5, "words": 6, "videos": 3, "rows": 4, "objects": 7}

Axes = tuple[str | int, ...]


class Side(nn.Module):
    """One side of a model, whose inputs are tensors in an order instead of dictionaries."""

    def __init__(self, model: SpacesModel, encode: Callable[[Any], Embeddings], names: list[str]) -> None:
        super().__init__()
        self.model, self.encode, self.names = model, encode, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """(items, dim) float32."""
        given = dict(zip(self.names, tensors, strict=True))
        if not any("." in name for name in self.names):
            return self.model.flatten(self.encode(given))
        streams: dict[str, dict[str, Tensor]] = {}
        for name, tensor in given.items():
            stream, _, part = name.rpartition(".")
            streams.setdefault(stream, {})[part] = tensor
        return self.model.flatten(self.encode(streams))


class Numbered(nn.Module):
    """A module whose weights are called by numbers.

    torch turns a module into Python code, where a part of it that is called like a keyword, as a level ``global`` or a
    stream ``class``, is a syntax error.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.hidden = (module,)  # in a tuple: no part of this module, so that its names stay out of the code
        self.names = [*dict(module.named_parameters()), *dict(module.named_buffers())]
        for number, tensor in enumerate([*module.parameters(), *module.buffers()]):
            self.register_buffer(f"tensor_{number}", tensor.detach())

    def forward(self, *tensors: Tensor) -> Tensor:
        weights = {name: getattr(self, f"tensor_{number}") for number, name in enumerate(self.names)}
        return torch.func.functional_call(self.hidden[0], weights, tensors)


def text_inputs(options: ModelOptions, inputs: Inputs) -> dict[str, tuple[str, Axes]]:
    """By name the type and the axes of what the text side takes; an axis is a name, or a fixed length."""
    made: dict[str, tuple[str, Axes]] = {}
    if options.text_stream:
        made |= {
            "values": ("float32", ("texts", "tokens", inputs.widths["text"])),
            "mask": ("bool", ("texts", "tokens")),
        }
        if inputs.sentence:
            made["sentence"] = ("float32", ("texts", inputs.sentence))
        if inputs.words:
            made["ids"] = ("int64", ("texts", "words"))
        return made
    return {"ids": ("int64", ("texts", "words")), "mask": ("bool", ("texts", "words"))}


def video_inputs(options: ModelOptions, inputs: Inputs) -> dict[str, tuple[str, Axes]]:
    """``text_inputs`` of the video side; names are ``STREAM.PART``."""
    made: dict[str, tuple[str, Axes]] = {}
    for number, stream in enumerate(options.video_streams):
        rows, width = f"rows_{number}", inputs.widths[stream]
        if stream in inputs.objects:
            some: Axes = ("videos", rows, f"objects_{number}")
            made |= {
                f"{stream}.values": ("float32", (*some, width)),
                f"{stream}.boxes": ("float32", (*some, 4)),
                f"{stream}.scores": ("float32", some),
                f"{stream}.mask": ("bool", some),
                f"{stream}.seconds": ("float32", some[:2]),
            }
        else:
            made[f"{stream}.values"] = ("float32", ("videos", rows, width))
            made[f"{stream}.mask"] = ("bool", ("videos", rows))
    return made


def write_graphs(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes ``onnx/text.onnx``, ``onnx/video.onnx`` and ``onnx/inputs.json`` into a folder.

    Both graphs give ``vectors`` (items, dim). The JSON has the type and the axes of every input, and how many rows,
    objects and tokens the model was trained with at most.

    Raises:
        AmexError: if the model compares parts with parts, the packages for ONNX are not installed, or torch cannot
            turn the model into graphs.
    """
    model, options, inputs = checkpoint.model(), checkpoint.config.model, checkpoint.inputs
    if not isinstance(model, SpacesModel):
        raise AmexError(
            f"{options.name} compares parts of texts with parts of videos, so that it has no vectors to give: export "
            "it without --onnx, and use amex.train.load"
        )
    sides = {
        "text": (model.encode_texts, text_inputs(options, inputs)),
        "video": (model.encode_videos, video_inputs(options, inputs)),
    }
    for part in model.modules():
        if isinstance(part, Standardize):
            part.logit = part.opens  # a graph holds one of the two ways
    target = folder / FOLDER
    target.mkdir()
    for name, (encode, wanted) in sides.items():
        _write_graph(Side(model, encode, list(wanted)), wanted, target / f"{name}.onnx")
    data = checkpoint.config.data
    described: dict[str, Any] = {
        name: {key: {"dtype": dtype, "axes": list(axes)} for key, (dtype, axes) in wanted.items()}
        for name, (_, wanted) in sides.items()
    }
    described["most"] = {"rows": data.max_rows, "objects": data.max_objects, "tokens": data.max_tokens}
    (target / INPUTS).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def _write_graph(side: Side, wanted: Mapping[str, tuple[str, Axes]], path: Path) -> None:
    dims = {axis: torch.export.Dim(axis) for _, axes in wanted.values() for axis in axes if isinstance(axis, str)}
    example = tuple(_example(dtype, axes) for dtype, axes in wanted.values())
    shapes = tuple(
        {place: dims[axis] for place, axis in enumerate(axes) if isinstance(axis, str)} for _, axes in wanted.values()
    )
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            torch.onnx.export(
                Numbered(side.eval()).eval(),
                example,
                path,
                input_names=list(wanted),
                output_names=[OUTPUT],
                dynamic_shapes=(shapes,),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except ImportError as error:
        raise AmexError(f"--onnx needs onnx and onnxscript: pip install 'amex[onnx]' ({first_line(error)})") from error
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.UserError) as error:
        raise AmexError(f"torch cannot turn the {path.stem} side into an ONNX graph: {first_line(error)}") from error
    finally:
        logger.setLevel(level)


def _example(dtype: str, axes: Axes) -> Tensor:
    shape = [axis if isinstance(axis, int) else LENGTHS[axis.partition("_")[0]] for axis in axes]
    return torch.ones(shape, dtype=getattr(torch, dtype))
