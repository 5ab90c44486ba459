"""AME-Net (Han et al., ACM TOMM 2022), reconstructed, with its global baseline.

Only the abstract and the references of the paper are public. Other details follow the cited works and BiC-Net, the
authors' next system; docs/concepts/amenet.md gives the source of each. Every such choice is an option.
"""

from __future__ import annotations

from torch import Tensor, nn

from ..options import AMENet as Options
from ..options import Inputs
from .base import Embeddings, SpacesModel
from .layers import GlobalBranch
from .relation import RelationBranch
from .text import CaptionReader, SentenceHead, TextEncoder, TokenHead


class AMENet(SpacesModel):
    """A relation branch and a global branch over the video, each with its own joint space.

    A caption has a vector in each space: from its ordered tokens in the relation space, from the complete caption in
    the global space. With one shared vector, the global space, which cannot use roles, removes them.

    Args:
        options: the ``model`` section of a configuration.
        inputs: the input sizes.
    """

    known_levels = ("relation", "global")

    def __init__(self, options: Options, inputs: Inputs) -> None:
        super().__init__()
        self.options, self.hubs = options, options.hubs
        dim, pooling, widths = options.dim, options.pooling, inputs.widths
        self.level_weights = {}
        heads: dict[str, nn.Module] = {}
        if options.relation_branch:
            self.level_weights["relation"] = options.weight if options.global_branch else 1.0
            dropout = options.relation_dropout
            self.relation = RelationBranch(widths[options.objects], dim, options, "attention", dropout)
            heads["relation"] = TokenHead(
                widths["text"], dim, sequence=options.text_sequence, pooling="attention", dropout=dropout
            )
        if options.global_branch:
            self.level_weights["global"] = 1 - options.weight if options.relation_branch else 1.0
            self.global_branch = GlobalBranch(
                {name: widths[name] for name in options.streams},
                dim,
                scaling=options.scaling,
                hidden=options.hidden,
                sequence=options.sequence,
                pooling=pooling,
                dropout=options.dropout,
            )
            heads["global"] = SentenceHead(
                inputs.sentence or widths["text"],
                dim,
                own=bool(inputs.sentence),
                hidden=options.hidden,
                dropout=options.dropout,
            )
        self.reader = CaptionReader(options, inputs)
        self.text = TextEncoder(
            dim,
            words=inputs.words if options.text_bag is True else 0,
            heads=heads,
            dropout=options.bag_dropout,
        )
        self.dims = dict.fromkeys(self.level_weights, dim)
        self.main_level = list(self.level_weights)[-1]

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """Return a unit vector (B, dim) per space."""
        spaces = {}
        if self.options.relation_branch:
            spaces["relation"] = self.relation(video[self.options.objects])
        if self.options.global_branch:
            spaces["global"] = self.global_branch(video)
        return self.with_hub(spaces, "videos")

    def edge_weights(self, video: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        if not self.options.relation_branch:
            return {}
        return {self.options.objects: self.relation.graph.edge_weights(video[self.options.objects])}

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """Return a unit vector (B, dim) per space."""
        return self.with_hub(self.text(self.reader(text)), "texts")
