"""AME-Net (Han et al., ACM TOMM 2022), reconstructed, and the global baseline beside it.

Of the paper only the abstract and the references are public. What they leave open follows the works they cite and the
authors' next system, BiC-Net; docs/amenet.md says which is which. Every open choice is an option of the configuration.
"""

from __future__ import annotations

from torch import Tensor

from ..options import AMENet as Options
from ..options import Inputs
from .base import Embeddings, SpacesModel
from .layers import GlobalBranch, TextEncoder
from .relation import RelationBranch


class AMENet(SpacesModel):
    """A relation branch and a global branch over the video, one joint space each.

    Args:
        options: the ``model`` section of a configuration.
    """

    known_levels = ("relation", "global")

    def __init__(self, options: Options, inputs: Inputs) -> None:
        super().__init__()
        self.options = options
        dim, dropout, pooling, widths = options.dim, options.dropout, options.pooling, inputs.widths
        self.level_weights = {}
        if options.relation_branch:
            self.level_weights["relation"] = options.weight if options.global_branch else 1.0
            self.relation = RelationBranch(widths[options.objects], dim, options, pooling, dropout)
        if options.global_branch:
            self.level_weights["global"] = 1 - options.weight if options.relation_branch else 1.0
            names = {name: widths[name] for name in options.streams}
            self.global_branch = GlobalBranch(
                names,
                dim,
                scaling=options.scaling,
                hidden=options.hidden,
                sequence=options.sequence,
                pooling=pooling,
                dropout=dropout,
            )
        self.text = TextEncoder(
            widths["text"],
            dim,
            words=inputs.words,
            bag=options.text_bag,
            sequence=options.text_sequence,
            pooling=pooling,
            heads=["shared"] if options.text_heads == "shared" else list(self.level_weights),
            dropout=dropout,
        )
        self.dims = dict.fromkeys(self.level_weights, dim)
        self.whole = list(self.level_weights)[-1]

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """Each space's (B, dim), of length 1."""
        spaces = {}
        if self.options.relation_branch:
            spaces["relation"] = self.relation(video[self.options.objects])
        if self.options.global_branch:
            spaces["global"] = self.global_branch(video)
        return spaces

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """Each space's (B, dim), of length 1."""
        heads = self.text(text)
        return {space: heads.get("shared", heads.get(space)) for space in self.level_weights}
