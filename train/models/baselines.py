"""Baselines: mean-pooled CLIP, and Dual Encoding, the strongest global model before CLIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, relu

from ...errors import AmexError
from ..options import CLIPMean as CLIPMeanOptions
from ..options import DualEncoding as DualOptions
from ..options import Inputs
from .base import Embeddings, SpacesModel
from .layers import Dropout, Present, masked_mean, scaler, sequence_gru, unit
from .text import CaptionReader


class CLIPMean(SpacesModel):
    """Average of CLIP's frame embeddings against its caption embeddings: the parameter-free form of CLIP4Clip.

    Luo et al., 2021. Nothing is learned: one epoch suffices to make the checkpoint. CLIP4Clip itself also fine-tunes
    both towers, which needs the videos.
    """

    known_levels = ("clip",)

    def __init__(self, options: CLIPMeanOptions, inputs: Inputs) -> None:
        super().__init__()
        self.options, self.level_weights, self.main_level = options, {"clip": 1.0}, "clip"
        self.dims = {"clip": inputs.sentence}
        wrong = [name for name in options.streams if inputs.widths[name] != inputs.sentence]
        if wrong or not inputs.sentence:
            name = wrong[0] if wrong else options.streams[0]
            raise AmexError(
                f"clip_mean compares frames with sentences as they are, but {name!r} has {inputs.widths[name]} "
                f"numbers per frame and {options.text!r} {inputs.sentence or 'no'} per sentence: extract both with one "
                "CLIP"
            )

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """Return ``clip``, unit vectors (B, D)."""
        rows = torch.cat([video[name]["values"] for name in self.options.streams], dim=1)
        mask = torch.cat([video[name]["mask"] for name in self.options.streams], dim=1)
        return {"clip": unit(masked_mean(unit(rows), mask))}

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """Return ``clip``, unit vectors (B, D)."""
        return {"clip": unit(text["sentence"])}


class DualEncoding(SpacesModel):
    """Dual Encoding (Dong et al., CVPR 2019): mean, biGRU and convolutions of each side, in one joint space."""

    known_levels = ("dual",)

    def __init__(self, options: DualOptions, inputs: Inputs) -> None:
        super().__init__()
        self.options, self.level_weights, self.main_level = options, {"dual": 1.0}, "dual"
        self.dims = {"dual": options.dim}
        self.scale = nn.ModuleDict(
            {name: scaler(name, inputs.widths[name], options.scaling) for name in options.streams}
        )
        self.video = nn.ModuleDict(
            {name: MultiLevel(inputs.widths[name], options, kernels=(2, 3, 4, 5)) for name in options.streams}
        )
        self.video_out = Out(sum(encoder.width for encoder in self.video.values()), options)
        self.reader = CaptionReader(options, inputs)
        self.bag = None
        if inputs.words:
            self.bag = nn.Embedding(inputs.words, options.dim, padding_idx=0)
            nn.init.zeros_(self.bag.weight)
        self.text = MultiLevel(inputs.widths["text"], options, kernels=(2, 3, 4), mean=options.text != "words")
        self.text_out = Out(self.text.width, options)

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """Return ``dual``, unit vectors (B, dim)."""
        streams = [
            encoder(self.scale[name](video[name]["values"]), video[name]["mask"])
            for name, encoder in self.video.items()
        ]
        return {"dual": unit(self.video_out(torch.cat(streams, dim=-1)))}

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """Return ``dual``, unit vectors (B, dim)."""
        bag = None
        if self.bag is not None:
            # The paper concatenates a bag of words and projects it; a learned vector for each word is equivalent.
            count = (text["ids"] != 0).sum(1, keepdim=True).clamp(min=1)
            bag = self.bag(text["ids"]).sum(1) * (self.options.dim / count).sqrt()
        return {"dual": unit(self.text_out(self.text(self.reader(text)["values"], text["mask"]), bag))}


class MultiLevel(nn.Module):
    """Encode a sequence on three levels: mean, mean of a biGRU, maximum of convolutions over the biGRU.

    Args:
        mean: whether to include the first level.
    """

    def __init__(self, width: int, options: DualOptions, *, kernels: tuple[int, ...], mean: bool = True) -> None:
        super().__init__()
        self.mean = mean
        self.gru = nn.GRU(width, options.rnn_dim, batch_first=True, bidirectional=True)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(2 * options.rnn_dim, options.filters, kernel, padding=kernel - 1) for kernel in kernels
        )
        self.dropout = Dropout(options.dropout)
        self.width = mean * width + 2 * options.rnn_dim + len(kernels) * options.filters

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode (B, L, width) with mask (B, L) to (B, self.width)."""
        hidden = sequence_gru(self.gru, x, mask)
        levels = [masked_mean(x, mask)] if self.mean else []
        levels.append(masked_mean(hidden, mask))
        places = Present(mask)
        rows = places.pick(hidden)
        for convolution in self.convolutions:
            levels.append(self._max_convolution(convolution, rows, places, mask.sum(1)))
        return self.dropout(torch.cat(levels, dim=-1))

    def _max_convolution(self, convolution: nn.Conv1d, rows: Tensor, places: Present, lengths: Tensor) -> Tensor:
        """Return (B, filters) the maximum of a convolution over sequences with rows at ``places``.

        The present rows are multiplied with all weights, then shifted and added. An ordinary convolution would mostly
        multiply the padding of short sequences.
        """
        width = convolution.kernel_size[0]
        weights = convolution.weight.permute(2, 0, 1).flatten(0, 1)
        parts = places.spread(linear(rows, weights)).unflatten(-1, (width, -1))
        length = parts.shape[1]
        values = sum(pad(parts[:, :, nth], (0, 0, width - 1 - nth, nth)) for nth in range(width))
        values = relu(values + convolution.bias)
        # Windows that overlap the last row of a sequence count, those in the padding do not.
        inside = torch.arange(length + width - 1, device=rows.device) < (lengths + width - 1).unsqueeze(1)
        return values.masked_fill(~inside.unsqueeze(-1), 0.0).amax(1)


class Out(nn.Module):
    """Projection into the joint space with batch normalisation; ``extra`` is added before the normalisation."""

    def __init__(self, width: int, options: DualOptions) -> None:
        super().__init__()
        self.project = nn.Linear(width, options.dim)
        self.norm = nn.BatchNorm1d(options.dim)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        projected = self.project(x)
        return self.norm(projected if extra is None else projected + extra)
