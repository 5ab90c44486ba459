"""AME-Net's relation branch: graphs over the objects of a clip, within frames and across them.

The edges follow the Actor Relation Graph (Wu et al., CVPR 2019): scaled dot products of two projections, several
parallel graphs, a limit on distance. Box geometry is used as in relation networks (Hu et al., CVPR 2018): it is added
to the weight of an edge. Here it is also part of the message, so that a node learns the position and motion of its
neighbours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ..options import ObjectGraph as Options
from .layers import AttentionPool, Pooling, unit

# Number of geometry components of an edge, and of a node.
EDGE = 9
NODE = 7


def node_geometry(boxes: Tensor, scores: Tensor, seconds: Tensor) -> Tensor:
    """Return (B, T, N, 7): centre, size, area, detector score and time of every box, scaled to about [-1, 1]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    w, h = x2 - x1, y2 - y1
    time = seconds.unsqueeze(-1).expand_as(w) / seconds.amax(dim=1)[:, None, None].clamp(min=1e-3)
    return torch.stack([x1 + x2 - 1, y1 + y2 - 1, 2 * w, 2 * h, 4 * w * h, scores, 2 * time - 1], dim=-1)


def edge_geometry(a: Tensor, b: Tensor, time_a: Tensor, time_b: Tensor) -> Tensor:
    """Return the geometry between each box of ``a`` (B, n, 4) and of ``b`` (B, m, 4), at their times: (B, n, m, 9)."""
    centre_a, centre_b = (a[..., :2] + a[..., 2:]) / 2, (b[..., :2] + b[..., 2:]) / 2
    size_a, size_b = (a[..., 2:] - a[..., :2]).clamp(min=1e-3), (b[..., 2:] - b[..., :2]).clamp(min=1e-3)
    between = centre_b.unsqueeze(1) - centre_a.unsqueeze(2)
    ratio = (size_b.unsqueeze(1) / size_a.unsqueeze(2)).log()
    corner = torch.minimum(a[:, :, None, 2:], b[:, None, :, 2:]) - torch.maximum(a[:, :, None, :2], b[:, None, :, :2])
    common = corner.clamp(min=0).prod(-1)
    union = size_a.prod(-1).unsqueeze(2) + size_b.prod(-1).unsqueeze(1) - common
    later = (time_b.unsqueeze(1) - time_a.unsqueeze(2)).unsqueeze(-1)
    # In frame widths a second; between the boxes of one object in two frames, this is its velocity.
    speed = between / torch.where(later == 0, torch.inf, later)
    length = between.pow(2).sum(-1, keepdim=True).add(1e-8).sqrt()
    overlap = (common / union.clamp(min=1e-6)).unsqueeze(-1)
    return torch.cat([2 * between, ratio, 2 * length, overlap, later, 4 * speed], dim=-1)


class Edges(nn.Module):
    """Edges of one kind in one layer: G weighted graphs whose messages are averaged."""

    def __init__(self, dim: int, graphs: int, key_dim: int, geometry: bool) -> None:
        super().__init__()
        self.graphs, self.key_dim = graphs, key_dim
        self.query = nn.Linear(dim, graphs * key_dim)
        self.key = nn.Linear(dim, graphs * key_dim)
        self.bias = nn.Sequential(nn.Linear(EDGE, 32), nn.ReLU(), nn.Linear(32, graphs)) if geometry else None
        width = dim + (EDGE if geometry else 0)
        self.message = nn.Parameter(torch.randn(graphs, width, dim) / math.sqrt(dim))
        if geometry:
            # Scale up the few geometry components, so that they initially count as much as the features.
            self.message.data[:, dim:] *= math.sqrt(dim / EDGE)
        # With equal projections, an object initially attends to the most similar one: in another frame, itself.
        self.key.load_state_dict(self.query.state_dict())
        self.norm = nn.LayerNorm(dim)

    def forward(self, nodes: Tensor, others: Tensor, mask: Tensor, between: Tensor | None) -> tuple[Tensor, Tensor]:
        """Send messages to ``nodes`` (B, n, D) from ``others`` (B, m, D) along edges where ``mask`` (B, n, m) is True.

        Args:
            between: geometry (B, n, m, EDGE); None if it is not used.

        Returns:
            The messages (B, n, D), and the edge weights (B, graphs, n, m) from m to n, which sum to 1 over m.
        """
        batch, n, _ = nodes.shape
        graphs, m = self.graphs, others.shape[1]
        query = self.query(nodes).view(batch, n, graphs, self.key_dim).transpose(1, 2)
        key = self.key(others).view(batch, m, graphs, self.key_dim).permute(0, 2, 3, 1)
        weight = query @ key / math.sqrt(self.key_dim)
        if between is not None:
            weight = weight + self.bias(between).permute(0, 3, 1, 2)
        weight = weight.masked_fill(~mask.unsqueeze(1), -1e4).softmax(-1) * mask.unsqueeze(1)
        # Graphs and nodes share an axis: few large products instead of many small ones.
        gathered = (weight.reshape(batch, graphs * n, m) @ others).view(batch, graphs, n, -1)
        if between is not None:
            along = weight.transpose(1, 2) @ between  # (B, n, G, EDGE)
            gathered = torch.cat([gathered, along.transpose(1, 2)], dim=-1)
        sent = torch.bmm(gathered.transpose(0, 1).reshape(graphs, batch * n, -1), self.message)
        return relu(self.norm(sent)).mean(0).view(batch, n, -1), weight


class ObjectGraph(nn.Module):
    """Update each object of a clip from the other objects.

    Args:
        width: dimension of an object's features.
        options: the kinds of edges: within a frame (spatial), to the neighbouring frames (temporal), both, or one graph
            over all objects of all frames (joint); G, layers and d_k of the Actor Relation Graph; the maximum length
            of spatial edges; whether nodes and edges use the boxes.
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
        """Encode objects to nodes (B, T, N, inner), zeros for padding.

        Args:
            objects: ``values`` (B, T, N, width), ``mask`` (B, T, N), ``boxes`` (B, T, N, 4) as fractions of the frame,
                ``scores`` (B, T, N), ``seconds`` (B, T) since the clip's first row.
        """
        return self._run(objects)[0]

    def edge_weights(self, objects: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weight of each sender for each object, by kind of edges, averaged over layers and graphs.

        Returns:
            ``spatial`` (B, T, N, N), senders on the last axis; ``temporal`` (B, T, N, 2N), senders of the previous row,
            then of the next; ``joint`` (B, T, N, T, N). Weights sum to 1 over senders and are 0 without an edge.
        """
        batch, frames, count = objects["mask"].shape
        ends = {"spatial": (count,), "temporal": (2 * count,), "joint": (frames, count)}
        layers = self._run(objects)[1]
        means = {kind: torch.stack([x[kind].mean(1) for x in layers]).mean(0) for kind in (layers[0] if layers else ())}
        return {kind: mean.reshape(batch, frames, count, *ends[kind]) for kind, mean in means.items()}

    def _run(self, objects: dict[str, Tensor]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Return the nodes, and for each layer the edge weights by kind."""
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
        """Return the mask of the edges of a kind, and the geometry between their ends."""
        seconds = objects["seconds"].unsqueeze(-1).expand_as(objects["mask"])
        ends = (objects["mask"], objects["boxes"], seconds)
        mask, boxes, times = ((self.flat(kind, x), self.neighbours(kind, x)) for x in ends)
        connected = mask[0].unsqueeze(2) & mask[1].unsqueeze(1)
        needed = self.geometry or (kind == "spatial" and self.distance is not None)
        between = edge_geometry(*boxes, *times) if needed else None
        if kind == "spatial" and self.distance is not None:
            # Horizontal and vertical distances are fractions of the frame. The geometry holds twice the length.
            connected = connected & (between[..., 4] <= 2 * self.distance)
        return connected, between if self.geometry else None

    def send(
        self, edges: Edges, kind: str, nodes: Tensor, mask: Tensor, between: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        sent, weight = edges(self.flat(kind, nodes), self.neighbours(kind, nodes), mask, between)
        return sent.view(*nodes.shape), weight

    @staticmethod
    def flat(kind: str, x: Tensor) -> Tensor:
        """Flatten (B, T, N, ...): frames into the batch; for a joint graph, all objects into one axis."""
        return x.flatten(1, 2) if kind == "joint" else x.flatten(0, 1)

    @classmethod
    def neighbours(cls, kind: str, x: Tensor) -> Tensor:
        """Return the possible senders for the nodes of ``flat``: (B or B*T, m, ...)."""
        if kind != "temporal":
            return cls.flat(kind, x)
        nothing = torch.zeros_like(x[:, :1])
        before, after = torch.cat([nothing, x[:, :-1]], dim=1), torch.cat([x[:, 1:], nothing], dim=1)
        return torch.cat([before, after], dim=2).flatten(0, 1)


class RelationBranch(nn.Module):
    """Encode the objects of a clip to one vector: graph, pooling over objects, pooling over frames."""

    def __init__(self, width: int, dim: int, options: Options, pooling: Pooling, dropout: float) -> None:
        super().__init__()
        inner = options.graph_dim
        self.graph = ObjectGraph(width, options, dropout)
        self.regions = AttentionPool(inner, pooling, dropout)
        self.pool = AttentionPool(inner, pooling, dropout)
        self.leave = nn.Linear(inner, dim)

    def forward(self, objects: dict[str, Tensor]) -> Tensor:
        """Encode the input of ``ObjectGraph`` to a unit vector (B, dim)."""
        nodes, mask = self.graph(objects), objects["mask"]
        batch, frames, _ = mask.shape
        frame = self.regions(nodes.flatten(0, 1), mask.flatten(0, 1)).view(batch, frames, -1)
        return unit(self.leave(self.pool(frame, mask.any(-1))))
