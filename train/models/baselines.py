"""What everybody compares with: mean-pooled CLIP, and Dual Encoding, the strongest of the global models before CLIP."""

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
    """CLIP's frame embeddings, averaged, against its caption embeddings: CLIP4Clip's parameter-free form.

    Luo et al., 2021. Nothing is learned: a run of one epoch makes the checkpoint. CLIP4Clip itself goes on to
    fine-tune both towers; that needs the videos.
    """

    known_levels = ("clip",)

    def __init__(self, options: CLIPMeanOptions, inputs: Inputs) -> None:
        super().__init__()
        self.options, self.level_weights, self.whole = options, {"clip": 1.0}, "clip"
        self.dims = {"clip": inputs.sentence}
        wrong = [name for name in options.streams if inputs.widths[name] != inputs.sentence]
        if wrong or not inputs.sentence:
            name = wrong[0] if wrong else options.streams[0]
            raise AmexError(
                f"clip_mean compares frames with sentences as they are: {name!r} has {inputs.widths[name]} numbers a "
                f"frame, {options.text!r} {inputs.sentence or 'no'} a sentence. Extract both with one CLIP"
            )

    def encode_videos(self, video: dict[str, dict[str, Tensor]]) -> Embeddings:
        """``clip``, (B, D) of length 1."""
        rows = torch.cat([video[name]["values"] for name in self.options.streams], dim=1)
        mask = torch.cat([video[name]["mask"] for name in self.options.streams], dim=1)
        return {"clip": unit(masked_mean(unit(rows), mask))}

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """``clip``, (B, D) of length 1."""
        return {"clip": unit(text["sentence"])}


class DualEncoding(SpacesModel):
    """Dual Encoding (Dong et al., CVPR 2019): each side's mean, its biGRU and convolutions over that, in one space."""

    known_levels = ("dual",)

    def __init__(self, options: DualOptions, inputs: Inputs) -> None:
        super().__init__()
        self.options, self.level_weights, self.whole = options, {"dual": 1.0}, "dual"
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
        """``dual``, (B, dim) of length 1."""
        found = [
            encoder(self.scale[name](video[name]["values"]), video[name]["mask"])
            for name, encoder in self.video.items()
        ]
        return {"dual": unit(self.video_out(torch.cat(found, dim=-1)))}

    def encode_texts(self, text: dict[str, Tensor]) -> Embeddings:
        """``dual``, (B, dim) of length 1."""
        extra = None
        if self.bag is not None:
            # A bag of words, which the paper puts first and projects, is a vector learned for each word.
            there = (text["ids"] != 0).sum(1, keepdim=True).clamp(min=1)
            extra = self.bag(text["ids"]).sum(1) * (self.options.dim / there).sqrt()
        return {"dual": unit(self.text_out(self.text(self.reader(text)["values"], text["mask"]), extra))}


class MultiLevel(nn.Module):
    """A sequence on three levels: its mean, the mean of its biGRU, the largest of convolutions over that.

    Args:
        mean: whether the first level is there.
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
        """(B, L, width) and (B, L) to (B, self.width)."""
        hidden = sequence_gru(self.gru, x, mask)
        levels = [masked_mean(x, mask)] if self.mean else []
        levels.append(masked_mean(hidden, mask))
        places = Present(mask)
        rows = places.pick(hidden)
        for convolution in self.convolutions:
            levels.append(self._largest(convolution, rows, places, mask.sum(1)))
        return self.dropout(torch.cat(levels, dim=-1))

    def _largest(self, convolution: nn.Conv1d, rows: Tensor, places: Present, lengths: Tensor) -> Tensor:
        """(B, filters): the largest of a convolution over sequences whose rows are at ``places``.

        A product of the rows alone with the weights, its parts shifted and added: rows of zeros before the beginning
        and behind the end of short sequences would be most of what a convolution multiplies.
        """
        width = convolution.kernel_size[0]
        weights = convolution.weight.permute(2, 0, 1).flatten(0, 1)
        parts = places.spread(linear(rows, weights)).unflatten(-1, (width, -1))
        length = parts.shape[1]
        seen = sum(pad(parts[:, :, nth], (0, 0, width - 1 - nth, nth)) for nth in range(width))
        seen = relu(seen + convolution.bias)
        # What reaches beyond the end of a sequence, as far as its last row, counts; padding does not.
        inside = torch.arange(length + width - 1, device=rows.device) < (lengths + width - 1).unsqueeze(1)
        return seen.masked_fill(~inside.unsqueeze(-1), 0.0).amax(1)


class Out(nn.Module):
    """Into the joint space: a linear map and batch normalisation."""

    def __init__(self, width: int, options: DualOptions) -> None:
        super().__init__()
        self.project = nn.Linear(width, options.dim)
        self.norm = nn.BatchNorm1d(options.dim)

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        projected = self.project(x)
        return self.norm(projected if extra is None else projected + extra)
