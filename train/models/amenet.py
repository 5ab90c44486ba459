"""AME-Net (Han et al., ACM TOMM 2022), reconstructed, and the global baseline beside it.

Of the paper only the abstract and the references are public. What they leave open follows the works they cite and the
authors' next system, BiC-Net; docs/amenet.md says which is which. Every open choice is an option of the configuration.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ..losses import ModalityClassifier, Ranking, gather_all
from ..options import AMENet as Options
from ..options import Inputs
from .base import Embeddings, SpacesModel
from .layers import GlobalBranch, TextEncoder
from .relation import RelationBranch


class AMENet(SpacesModel):
    """A relation branch and a global branch over the video, one joint space each, and adversarial alignment.

    Args:
        options: the ``model`` section of a configuration.
    """

    def __init__(self, options: Options, inputs: Inputs) -> None:
        super().__init__()
        self.options = options
        dim, dropout, pooling, widths = options.dim, options.dropout, options.pooling, inputs.widths
        self.weights = {}
        if options.relation_branch:
            self.weights["relation"] = options.weight if options.global_branch else 1.0
            self.relation = RelationBranch(widths[options.objects], dim, options, pooling, dropout)
        if options.global_branch:
            self.weights["global"] = 1 - options.weight if options.relation_branch else 1.0
            names = {name: widths[name] for name in options.streams}
            self.whole = GlobalBranch(
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
            heads=["shared"] if options.text_heads == "shared" else list(self.weights),
            dropout=dropout,
        )
        self.rank = nn.ModuleDict({space: Ranking(options) for space in self.weights})
        self.adversary = None
        if options.adversarial != "off":
            self.adversary = ModalityClassifier(
                list(self.weights),
                dim,
                mode=options.adversarial,
                weight=options.adversarial_weight,
                hidden=options.adversarial_hidden,
                lr=options.adversarial_lr,
            )

    @property
    def own_optimizer(self) -> Optimizer | None:
        """That of the modality classifiers, where they alternate with the encoders."""
        return self.adversary.optimizer if self.adversary is not None else None

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """Each space's (B, dim), of length 1."""
        spaces = {}
        if self.options.relation_branch:
            spaces["relation"] = self.relation(video[self.options.objects])
        if self.options.global_branch:
            spaces["global"] = self.whole(video)
        return spaces

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """Each space's (B, dim), of length 1."""
        heads = self.text(text)
        return {space: heads.get("shared", heads.get(space)) for space in self.weights}

    def loss(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Ranking in each space, plus what the modality classifiers add.

        Args:
            batch: ``video``, ``text``, and for each pair ``clip`` and ``caption``, numbers that are equal where the
                clips or the captions are.
        """
        videos, texts = self.encode_pairs(batch)
        scores = self.space_scores(gather_all(videos), gather_all(texts))
        losses = {
            f"loss_{space}": weight * self.rank[space](scores[space], batch) for space, weight in self.weights.items()
        }
        if self.adversary is not None:
            losses |= self.adversary(videos, texts, self.progress)
        return losses
