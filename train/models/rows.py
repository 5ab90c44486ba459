"""Rows of a video's streams, one sequence: frames, clips, and objects that were told of each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..options import HCMI, Inputs, RoleGraphs
from .layers import Dropout, scaler
from .relation import ObjectGraph


class Rows(nn.Module):
    """The rows of all streams one after the other, projected once a level.

    Args:
        levels: their names.
        project: whether they are; else features must have ``options.dim`` numbers.
    """

    def __init__(
        self, options: RoleGraphs | HCMI, inputs: Inputs, levels: Sequence[str], *, project: bool = True
    ) -> None:
        super().__init__()
        widths = {name: inputs.widths[name] for name in options.streams}
        self.scale = nn.ModuleDict()
        for name, width in widths.items():
            if name in inputs.objects:
                self.scale[name] = ObjectGraph(width, options, options.dropout)
                widths[name] = options.graph_dim
            else:
                self.scale[name] = scaler(name, width, options.scaling)
        self.levels = nn.ModuleDict(
            {
                level: nn.ModuleDict(
                    {
                        name: nn.Linear(width, options.dim) if project else nn.Identity()
                        for name, width in widths.items()
                    }
                )
                for level in levels
            }
        )
        self.dropout = Dropout(options.dropout)

    def forward(self, video: dict[str, dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
        """By level (B, T, dim), and the mask (B, T); an object in a frame is a row."""
        seen, masks = self.streams(video)
        joined = {level: torch.cat(list(x.values()), dim=1) for level, x in seen.items()}
        return joined, torch.cat(list(masks.values()), dim=1)

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """By stream of objects, what the edges of its graph weigh: as of ``ObjectGraph.edge_weights``."""
        return {
            name: graph.edge_weights(video[name])
            for name, graph in self.scale.items()
            if isinstance(graph, ObjectGraph)
        }

    def streams(self, video: dict[str, dict[str, Tensor]]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """What ``forward`` joins: by level and stream, and the masks by stream."""
        values, masks = {}, {}
        for name, scale in self.scale.items():
            stream = video[name]
            objects = stream["mask"].ndim == 3
            values[name] = scale(stream).flatten(1, 2) if objects else scale(stream["values"])
            masks[name] = stream["mask"].flatten(1)
        seen = {
            level: {name: self.dropout(project[name](x)) for name, x in values.items()}
            for level, project in self.levels.items()
        }
        return seen, masks
