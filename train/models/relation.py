"""AME-Net's relation branch: graphs over the objects of a clip, within frames and across them.

The edges follow the Actor Relation Graph (Wu et al., CVPR 2019): scaled dot products of two projections, several graphs
side by side, a mask on distance. Box geometry enters as in relation networks (Hu et al., CVPR 2018): it is added to an
edge's weight, and here also carried along the edge, so that a node learns where its neighbours are and went.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ..options import ObjectGraph as Options
from .layers import AttentionPool, Pooling, unit

# Numbers that describe an edge, and a node.
EDGE = 9
NODE = 7


def node_geometry(boxes: Tensor, scores: Tensor, seconds: Tensor) -> Tensor:
    """(B, T, N, 7): middle, size, area, detector score and time of every box, all near [-1, 1]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    w, h = x2 - x1, y2 - y1
    time = seconds.unsqueeze(-1).expand_as(w) / seconds.amax(dim=1)[:, None, None].clamp(min=1e-3)
    return torch.stack([x1 + x2 - 1, y1 + y2 - 1, 2 * w, 2 * h, 4 * w * h, scores, 2 * time - 1], dim=-1)


def edge_geometry(a: Tensor, b: Tensor, time_a: Tensor, time_b: Tensor) -> Tensor:
    """What lies between each box of ``a`` (B, n, 4) and of ``b`` (B, m, 4), at their times: (B, n, m, 9)."""
    middle_a, middle_b = (a[..., :2] + a[..., 2:]) / 2, (b[..., :2] + b[..., 2:]) / 2
    size_a, size_b = (a[..., 2:] - a[..., :2]).clamp(min=1e-3), (b[..., 2:] - b[..., :2]).clamp(min=1e-3)
    between = middle_b.unsqueeze(1) - middle_a.unsqueeze(2)
    ratio = (size_b.unsqueeze(1) / size_a.unsqueeze(2)).log()
    corner = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:]) - torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    common = corner.clamp(min=0).prod(-1)
    union = size_a.prod(-1).unsqueeze(2) + size_b.prod(-1).unsqueeze(1) - common
    later = (time_b.unsqueeze(1) - time_a.unsqueeze(2)).unsqueeze(-1)
    # Frame widths a second: between the places of one object in two frames, how it moves.
    speed = between / torch.where(later == 0, torch.inf, later)
    length = between.pow(2).sum(-1, keepdim=True).add(1e-8).sqrt()
    overlap = (common / union.clamp(min=1e-6)).unsqueeze(-1)
    return torch.cat([2 * between, ratio, 2 * length, overlap, later, 4 * speed], dim=-1)


class Edges(nn.Module):
    """One kind of edges of one layer: G weighted graphs, their messages summed."""

    def __init__(self, dim: int, graphs: int, key_dim: int, geometry: bool) -> None:
        super().__init__()
        self.graphs, self.key_dim = graphs, key_dim
        self.query = nn.Linear(dim, graphs * key_dim)
        self.key = nn.Linear(dim, graphs * key_dim)
        self.bias = nn.Sequential(nn.Linear(EDGE, 32), nn.ReLU(), nn.Linear(32, graphs)) if geometry else None
        width = dim + (EDGE if geometry else 0)
        self.message = nn.Parameter(torch.randn(graphs, width, dim) / math.sqrt(dim))
        if geometry:
            # The few numbers of the geometry begin with as much to say as the many of the features.
            self.message.data[:, dim:] *= math.sqrt(dim / EDGE)
        # Equal projections at first: an object is joined to what is most like it, in another frame to itself.
        self.key.load_state_dict(self.query.state_dict())
        self.norm = nn.LayerNorm(dim)

    def forward(self, nodes: Tensor, others: Tensor, mask: Tensor, between: Tensor | None) -> tuple[Tensor, Tensor]:
        """Messages to ``nodes`` (B, n, D) from ``others`` (B, m, D) along edges where ``mask`` (B, n, m) holds.

        Args:
            between: (B, n, m, EDGE), or None where geometry is left out.

        Returns:
            The messages (B, n, D), and the weights of the edges, (B, graphs, n, m): from m to n, summing to 1 over m.
        """
        batch, n, _ = nodes.shape
        graphs, m = self.graphs, others.shape[1]
        query = self.query(nodes).view(batch, n, graphs, self.key_dim).transpose(1, 2)
        key = self.key(others).view(batch, m, graphs, self.key_dim).permute(0, 2, 3, 1)
        weight = query @ key / math.sqrt(self.key_dim)
        if between is not None:
            weight = weight + self.bias(between).permute(0, 3, 1, 2)
        weight = weight.masked_fill(~mask.unsqueeze(1), -1e4).softmax(-1) * mask.unsqueeze(1)
        # Graphs and nodes in one axis: few large products instead of many small ones.
        gathered = (weight.reshape(batch, graphs * n, m) @ others).view(batch, graphs, n, -1)
        if between is not None:
            along = weight.transpose(1, 2) @ between  # (B, n, G, EDGE)
            gathered = torch.cat([gathered, along.transpose(1, 2)], dim=-1)
        sent = torch.bmm(gathered.transpose(0, 1).reshape(graphs, batch * n, -1), self.message)
        return relu(self.norm(sent)).mean(0).view(batch, n, -1), weight


class ObjectGraph(nn.Module):
    """Objects of a clip, each told what the others are and do.

    Args:
        width: of an object's feature.
        options: which edges: within a frame (spatial), to the frames before and after (temporal), both kinds, or one
            graph over all objects of all frames (joint); the Actor Relation Graph's G, layers and d_k; how far spatial
            edges reach, and whether nodes and edges know the boxes.
    """

    def __init__(self, width: int, options: Options, dropout: float) -> None:
        super().__init__()
        self.distance, self.geometry = options.distance, options.geometry
        inner, geometry, layers = options.graph_dim, options.geometry, options.graph_layers
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, inner)
        self.place = nn.Sequential(nn.Linear(NODE, inner), nn.ReLU(), nn.Linear(inner, inner)) if geometry else None
        self.dropout = nn.Dropout(dropout)
        kinds = {"none": (), "both": ("temporal", "spatial")}.get(options.graph, (options.graph,))
        self.layers = nn.ModuleList(
            nn.ModuleDict({kind: Edges(inner, options.graphs, options.key_dim, geometry) for kind in kinds})
            for _ in range(layers)
        )
        self.mix = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(inner), nn.Linear(inner, 2 * inner), nn.GELU(), nn.Linear(2 * inner, inner))
            for _ in range(layers)
        )

    def forward(self, objects: dict[str, Tensor]) -> Tensor:
        """Objects to nodes (B, T, N, inner), zeros where there is none.

        Args:
            objects: ``values`` (B, T, N, width), ``mask`` (B, T, N), ``boxes`` (B, T, N, 4) as fractions of the frame,
                ``scores`` (B, T, N), ``seconds`` (B, T) since the clip's first row.
        """
        return self._run(objects)[0]

    def edge_weights(self, objects: dict[str, Tensor]) -> dict[str, Tensor]:
        """How much each object is told by the others: by kind, the mean over layers and graphs; sums to 1 over senders.

        Returns:
            ``spatial`` (B, T, N, N), from the last axis to the one before; ``temporal`` (B, T, N, 2N), from the objects
            of the row before, then from those of the row after; ``joint`` (B, T, N, T, N). 0 where there is no edge.
        """
        batch, frames, count = objects["mask"].shape
        ends = {"spatial": (count,), "temporal": (2 * count,), "joint": (frames, count)}
        layers = self._run(objects)[1]
        means = {kind: torch.stack([x[kind].mean(1) for x in layers]).mean(0) for kind in (layers[0] if layers else ())}
        return {kind: mean.reshape(batch, frames, count, *ends[kind]) for kind, mean in means.items()}

    def _run(self, objects: dict[str, Tensor]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The nodes, and by layer the weights of each kind of edges."""
        values, mask = objects["values"], objects["mask"]
        nodes = self.enter(self.norm(values))
        if self.place is not None:
            nodes = nodes + self.place(node_geometry(objects["boxes"], objects["scores"], objects["seconds"]))
        nodes = relu(nodes) * mask.unsqueeze(-1)
        wiring = {kind: self.wire(kind, objects) for kind in (self.layers[0] if len(self.layers) else ())}
        weights: list[dict[str, Tensor]] = []
        for layer, mix in zip(self.layers, self.mix, strict=True):
            weights.append({})
            for kind, edges in layer.items():
                sent, weights[-1][kind] = self.send(edges, kind, nodes, *wiring[kind])
                nodes = nodes + self.dropout(sent)
            nodes = (nodes + self.dropout(mix(nodes))) * mask.unsqueeze(-1)
        return nodes, weights

    def wire(self, kind: str, objects: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """The edges of one kind: which there are, and what lies between their ends."""
        seconds = objects["seconds"].unsqueeze(-1).expand_as(objects["mask"])
        ends = (objects["mask"], objects["boxes"], seconds)
        mask, boxes, times = ((self.flat(kind, x), self.neighbours(kind, x)) for x in ends)
        joined = mask[0].unsqueeze(2) & mask[1].unsqueeze(1)
        needed = self.geometry or (kind == "spatial" and self.distance is not None)
        between = edge_geometry(*boxes, *times) if needed else None
        if kind == "spatial" and self.distance is not None:
            # Sideways and down measure alike in fractions of a frame; the length is doubled in the geometry.
            joined = joined & (between[..., 4] <= 2 * self.distance)
        return joined, between if self.geometry else None

    def send(
        self, edges: Edges, kind: str, nodes: Tensor, mask: Tensor, between: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sent, weight = edges(self.flat(kind, nodes), self.neighbours(kind, nodes), mask, between)
        return sent.view(*nodes.shape), weight

    @staticmethod
    def flat(kind: str, x: Tensor) -> Tensor:
        """(B, T, N, ...) with the frames in the batch; for a joint graph with the objects of all frames in a row."""
        return x.flatten(1, 2) if kind == "joint" else x.flatten(0, 1)

    @classmethod
    def neighbours(cls, kind: str, x: Tensor) -> Tensor:
        """What the nodes of ``flat`` may be joined to: (B or B*T, m, ...)."""
        if kind != "temporal":
            return cls.flat(kind, x)
        nothing = torch.zeros_like(x[:, :1])
        before, after = torch.cat([nothing, x[:, :-1]], dim=1), torch.cat([x[:, 1:], nothing], dim=1)
        return torch.cat([before, after], dim=2).flatten(0, 1)


class RelationBranch(nn.Module):
    """Objects of a clip to one vector: the graph, then the objects of a frame pooled, then the frames."""

    def __init__(self, width: int, dim: int, options: Options, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        inner = options.graph_dim
        self.graph = ObjectGraph(width, options, dropout)
        self.regions = AttentionPool(inner, pooling, dropout)
        self.pool = AttentionPool(inner, pooling, dropout)
        self.leave = nn.Linear(inner, dim)

    def forward(self, objects: dict[str, Tensor]) -> Tensor:
        """What ``ObjectGraph`` takes to (B, dim), of length 1."""
        nodes, mask = self.graph(objects), objects["mask"]
        batch, frames, _ = mask.shape
        frame = self.regions(nodes.flatten(0, 1), mask.flatten(0, 1)).view(batch, frames, -1)
        return unit(self.leave(self.pool(frame, mask.any(-1))))
