"""Export both sides of a model as ONNX graphs: texts and videos to vectors whose dot products are scores."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AmexError, first_line, needs
from .checkpoint import Checkpoint
from .models import Embeddings, SpacesModel
from .models.layers import Standardize
from .options import Inputs, ModelOptions

# Escape codes that colour the exporter's messages.
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
FOLDER, INPUTS, OUTPUT = "onnx", "inputs.json", "vectors"
# Each axis of an example has a different length: torch would identify axes of equal length, and treat 1 as a constant.
LENGTHS = {"texts": 2, "tokens": 5, "words": 6, "videos": 3, "rows": 4, "objects": 7}

Axes = tuple[str | int, ...]


class Side(nn.Module):
    """One side of a model, with tensors in a fixed order as inputs instead of dictionaries."""

    def __init__(self, model: SpacesModel, encode: Callable[[Any], Embeddings], names: list[str]) -> None:
        super().__init__()
        self.model, self.encode, self.names = model, encode, names

    def forward(self, *tensors: Tensor) -> Tensor:
        """Encode to (items, dim) float32."""
        named = dict(zip(self.names, tensors, strict=True))
        if not any("." in name for name in self.names):
            return self.model.flatten(self.encode(named))
        streams: dict[str, dict[str, Tensor]] = {}
        for name, tensor in named.items():
            stream, _, part = name.rpartition(".")
            streams.setdefault(stream, {})[part] = tensor
        return self.model.flatten(self.encode(streams))


class Numbered(nn.Module):
    """A module whose weights have numbers instead of names.

    torch converts a module to Python code, in which a name that is a keyword, such as the level ``global`` or a stream
    ``class``, is a syntax error.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.hidden = (module,)  # a tuple, so that it is no submodule and its names do not enter the code
        self.names = [*dict(module.named_parameters()), *dict(module.named_buffers())]
        for number, tensor in enumerate([*module.parameters(), *module.buffers()]):
            self.register_buffer(f"tensor_{number}", tensor.detach())

    def forward(self, *tensors: Tensor) -> Tensor:
        weights = {name: getattr(self, f"tensor_{number}") for number, name in enumerate(self.names)}
        return torch.func.functional_call(self.hidden[0], weights, tensors)


def text_inputs(options: ModelOptions, inputs: Inputs) -> dict[str, tuple[str, Axes]]:
    """Return the type and the axes of each input of the text side; an axis is a name or a fixed length."""
    axes_of: dict[str, tuple[str, Axes]] = {}
    if options.text_stream:
        axes_of |= {
            "values": ("float32", ("texts", "tokens", inputs.widths["text"])),
            "mask": ("bool", ("texts", "tokens")),
        }
        if inputs.sentence:
            axes_of["sentence"] = ("float32", ("texts", inputs.sentence))
        if inputs.words:
            axes_of["ids"] = ("int64", ("texts", "words"))
        return axes_of
    return {"ids": ("int64", ("texts", "words")), "mask": ("bool", ("texts", "words"))}


def video_inputs(options: ModelOptions, inputs: Inputs) -> dict[str, tuple[str, Axes]]:
    """Return the inputs of the video side as in ``text_inputs``; names are ``STREAM.PART``."""
    axes_of: dict[str, tuple[str, Axes]] = {}
    for number, stream in enumerate(options.video_streams):
        rows, width = f"rows_{number}", inputs.widths[stream]
        if stream in inputs.objects:
            axes: Axes = ("videos", rows, f"objects_{number}")
            axes_of |= {
                f"{stream}.values": ("float32", (*axes, width)),
                f"{stream}.boxes": ("float32", (*axes, 4)),
                f"{stream}.scores": ("float32", axes),
                f"{stream}.mask": ("bool", axes),
                f"{stream}.seconds": ("float32", axes[:2]),
            }
        else:
            axes_of[f"{stream}.values"] = ("float32", ("videos", rows, width))
            axes_of[f"{stream}.mask"] = ("bool", ("videos", rows))
    return axes_of


def write_graphs(checkpoint: Checkpoint, folder: Path) -> None:
    """Write ``onnx/text.onnx``, ``onnx/video.onnx`` and ``onnx/inputs.json`` to a folder.

    Both graphs return ``vectors`` (items, dim). The JSON lists the type and the axes of every input, and the maximum
    number of rows, objects and tokens in training.

    Raises:
        AmexError: if the model compares parts with parts, if packages for ONNX are not installed, or if torch cannot
            export the model.
    """
    model, options, inputs = checkpoint.model(), checkpoint.config.model, checkpoint.inputs
    if not isinstance(model, SpacesModel):
        raise AmexError(
            f"{options.name} compares parts of texts with parts of videos, so it has no vectors to export: omit --onnx "
            "and use amex.train.load"
        )
    sides = {
        "text": (model.encode_texts, text_inputs(options, inputs)),
        "video": (model.encode_videos, video_inputs(options, inputs)),
    }
    for part in model.modules():
        if isinstance(part, Standardize):
            part.logit = part.opens  # fix the branch, since a graph contains only one
    target = folder / FOLDER
    target.mkdir()
    for name, (encode, inputs_of) in sides.items():
        _write_graph(Side(model, encode, list(inputs_of)), inputs_of, target / f"{name}.onnx")
    data = checkpoint.config.data
    description: dict[str, Any] = {
        name: {key: {"dtype": dtype, "axes": list(axes)} for key, (dtype, axes) in inputs_of.items()}
        for name, (_, inputs_of) in sides.items()
    }
    description["most"] = {"rows": data.max_rows, "objects": data.max_objects, "tokens": data.max_tokens}
    (target / INPUTS).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def _write_graph(side: Side, inputs_of: Mapping[str, tuple[str, Axes]], path: Path) -> None:
    dims = {axis: torch.export.Dim(axis) for _, axes in inputs_of.values() for axis in axes if isinstance(axis, str)}
    example = tuple(_example(dtype, axes) for dtype, axes in inputs_of.values())
    shapes = tuple(
        {place: dims[axis] for place, axis in enumerate(axes) if isinstance(axis, str)}
        for _, axes in inputs_of.values()
    )
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    try:
        with needs("onnx", "--onnx"), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            torch.onnx.export(
                Numbered(side.eval()).eval(),
                example,
                path,
                input_names=list(inputs_of),
                output_names=[OUTPUT],
                dynamic_shapes=(shapes,),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.UserError) as error:
        reason = COLOURS.sub("", first_line(error))
        raise AmexError(f"torch cannot export the {path.stem} side to an ONNX graph: {reason}") from error
    finally:
        logger.setLevel(level)


def _example(dtype: str, axes: Axes) -> Tensor:
    shape = [axis if isinstance(axis, int) else LENGTHS[axis.partition("_")[0]] for axis in axes]
    return torch.ones(shape, dtype=getattr(torch, dtype))
