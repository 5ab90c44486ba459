"""The rows of a video's streams as one sequence: frames, clips, and objects after their graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..options import HCMI, Inputs, RoleGraphs
from .layers import Dropout, scaler
from .relation import ObjectGraph


class Rows(nn.Module):
    """Concatenate the rows of all streams, projected once for each level.

    Args:
        levels: names of the levels.
        project: whether to project; else features must have ``options.dim`` components.
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
        """Return (B, T, dim) by level, and the mask (B, T); an object in a frame is a row."""
        values, masks = self.streams(video)
        rows = {level: torch.cat(list(x.values()), dim=1) for level, x in values.items()}
        return rows, torch.cat(list(masks.values()), dim=1)

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Return the edge weights of each object stream's graph; see ``ObjectGraph.edge_weights``."""
        return {
            name: graph.edge_weights(video[name])
            for name, graph in self.scale.items()
            if isinstance(graph, ObjectGraph)
        }

    def streams(self, video: dict[str, dict[str, Tensor]]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """Return the projected rows by level and stream, and the masks by stream."""
        values, masks = {}, {}
        for name, scale in self.scale.items():
            stream = video[name]
            objects = stream["mask"].ndim == 3
            values[name] = scale(stream).flatten(1, 2) if objects else scale(stream["values"])
            masks[name] = stream["mask"].flatten(1)
        projected = {
            level: {name: self.dropout(project[name](x)) for name, x in values.items()}
            for level, project in self.levels.items()
        }
        return projected, masks
