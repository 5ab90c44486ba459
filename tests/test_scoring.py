"""Every score is computed once, in blocks that do not change it, and equals its formula."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_evaluation import add_stream, of_clips
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize
from torch.overrides import TorchFunctionMode

from amex.errors import AmexError
from amex.features import open_store
from amex.manifests import Clip
from amex.train import evaluate
from amex.train.data import Split, inputs
from amex.train.evaluate import evaluate_split, score_embeddings, score_split
from amex.train.models import Embeddings, RetrievalModel, build_model, parts
from amex.train.options import HGR

Masks = tuple[list[list[bool]], list[list[bool]]]


@st.composite
def masks(draw: st.DrawFn) -> Masks:
    """Masks of the parts of captions and videos: any, including empty ones."""
    sides = []
    for most in (3, 5):
        width = draw(st.integers(1, most))
        sides.append(draw(st.lists(st.lists(st.booleans(), min_size=width, max_size=width), min_size=1, max_size=4)))
    return sides[0], sides[1]


def drawn(mask: list[list[bool]], seed: int) -> tuple[Tensor, Tensor]:
    """Vectors of parts, with values in padding too, and the mask."""
    present = torch.tensor(mask)
    return torch.randn(*present.shape, 4, generator=torch.Generator().manual_seed(seed)), present


def one_phrase(phrase: Tensor, rows: Tensor, options: HGR) -> Tensor:
    """The match of a phrase with the rows it attends to, as in HGR's paper and program."""
    cosines = cosine_similarity(phrase.unsqueeze(0), rows)
    attention = normalize(cosines.clamp(min=0), dim=0, eps=1e-10)
    weights = (options.sharpness * attention).softmax(0)
    if options.fusion == "sim":
        return (weights * cosines).sum()
    return cosine_similarity(phrase, (weights.unsqueeze(1) * rows).sum(0), dim=0)


def one_pair(words: Tensor, word_weights: Tensor, frames: Tensor, frame_weights: Tensor) -> Tensor:
    """The token-wise interaction of a caption and a video."""
    cosines = words @ frames.T
    return ((cosines.amax(1) * word_weights).sum() + (cosines.amax(0) * frame_weights).sum()) / 2


def pair_by_pair(texts: Tensor, said: Tensor, videos: Tensor, shown: Tensor, score: Callable[..., Tensor]) -> Tensor:
    """(C, V) of a score over present parts; 0 if a side has none."""
    rows = [
        [
            score(caption[some], video[seen]) if some.any() and seen.any() else (caption.sum() + video.sum()) * 0
            for video, seen in zip(videos, shown, strict=True)
        ]
        for caption, some in zip(texts, said, strict=True)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def assert_same_and_learn_the_same(found: Callable[..., Tensor], expected: Callable[..., Tensor], *x: Tensor) -> None:
    """Check that two functions have equal values, also without gradients, and equal gradients."""
    with torch.no_grad():
        fixed = found(*x)
    ours, theirs = ([value.clone().requires_grad_() for value in x] for _ in range(2))
    scores, formula = found(*ours), expected(*theirs)
    assert torch.allclose(fixed, formula, atol=2e-6)
    assert torch.allclose(scores, formula, atol=2e-6)
    weights = torch.randn(formula.shape, generator=torch.Generator().manual_seed(0))
    (scores * weights).sum().backward()
    (formula * weights).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        zeros = torch.zeros_like(a)  # of unused inputs
        expected_grad = zeros if b.grad is None else b.grad
        assert torch.allclose(zeros if a.grad is None else a.grad, expected_grad, rtol=1e-3, atol=1e-5)


@settings(max_examples=20)
@given(masks(), st.sampled_from(["embed", "sim"]), st.integers(1, 9), st.integers(0, 99))
def test_phrase_scores_equal_the_formula_for_any_mask(there: Masks, fusion: Any, block: int, seed: int) -> None:
    (phrases, said), (frames, shown) = drawn(there[0], seed), drawn(there[1], seed + 100)
    options = HGR(fusion=fusion, streams=["frames"])

    def formula(phrases: Tensor, frames: Tensor) -> Tensor:
        def mean(some: Tensor, rows: Tensor) -> Tensor:
            return torch.stack([one_phrase(phrase, rows, options) for phrase in some]).mean()

        return pair_by_pair(phrases, said, frames, shown, mean)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "TEXTS", block)
        patch.setattr(parts, "VIDEOS", block)
        assert_same_and_learn_the_same(
            lambda a, b: parts.phrase_scores(b, shown, a, said, options), formula, phrases, frames
        )


@settings(max_examples=20)
@given(masks(), st.integers(1, 9), st.integers(0, 99))
def test_token_scores_equal_the_formula_for_any_mask(there: Masks, block: int, seed: int) -> None:
    (words, said), (frames, shown) = drawn(there[0], seed), drawn(there[1], seed + 100)
    draw = torch.Generator().manual_seed(seed)
    weights, others = (0.1 + torch.rand(mask.shape, generator=draw) for mask in (said, shown))

    def formula(words: Tensor, weights: Tensor, frames: Tensor, others: Tensor) -> Tensor:
        texts, videos = (torch.cat([x, w.unsqueeze(-1)], -1) for x, w in ((words, weights), (frames, others)))
        return pair_by_pair(texts, said, videos, shown, lambda a, b: one_pair(a[:, :-1], a[:, -1], b[:, :-1], b[:, -1]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "TEXTS", block)
        patch.setattr(parts, "VIDEOS", block)
        assert_same_and_learn_the_same(
            lambda words, weights, frames, others: parts.token_scores(words, weights * said, frames, others * shown),
            formula, words, weights, frames, others,
        )  # fmt: skip


def test_a_phrase_without_a_matching_row_attends_equally_to_all_rows() -> None:
    frames, phrases = torch.tensor([[[-1.0, 0.1], [-1.0, -0.1], [9.0, 9.0]]]), torch.tensor([[[1.0, 0.0]]])
    shown, said = torch.tensor([[True, True, False]]), torch.ones(1, 1, dtype=torch.bool)
    actual = parts.phrase_scores(frames, shown, phrases, said, HGR(streams=["frames"]))
    assert actual.item() == pytest.approx(-1)  # of the mean of both


class Largest(TorchFunctionMode):
    """Records the number of elements of the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize("name", ["phrases", "tokens"])
def test_scoring_needs_memory_only_for_inputs_outputs_and_one_block(name: str) -> None:
    captions, clips, said, rows, dim = 300, 200, 10, 20, 8
    texts, videos = torch.randn(captions, said, dim), torch.randn(clips, rows, dim)
    with Largest() as largest, torch.no_grad():
        if name == "phrases":
            present = (torch.ones(x.shape[:2], dtype=torch.bool) for x in (videos, texts))
            parts.phrase_scores(videos, next(present), texts, next(present), HGR(streams=["frames"]))
        else:
            even = torch.full((captions, said), 1 / said), torch.full((clips, rows), 1 / rows)
            parts.token_scores(texts, even[0], videos, even[1])
    block = parts.TEXTS * parts.VIDEOS
    assert block < captions * clips * said * rows / 20  # the size of one product of everything
    assert largest.numbers <= max(block, texts.numel(), videos.numel(), captions * clips)


class Counting(RetrievalModel):
    """A model that counts the pairs it scores."""

    def __init__(self, model: RetrievalModel) -> None:
        super().__init__()
        self.model, self.pairs = model, 0
        self.encode_videos, self.encode_texts = model.encode_videos, model.encode_texts  # type: ignore[method-assign]

    def score(self, videos: Embeddings, texts: Embeddings) -> Tensor:
        actual = self.model.score(videos, texts)
        self.pairs += actual.numel()
        return actual


@pytest.fixture
def split(tmp_path: Path) -> tuple[Counting, Split]:
    """Ten clips of unequal length with two or three captions each, some repeated, and swapped twins."""
    clips = [
        Clip(
            clip_id=f"c{i}",
            video=f"v{i}",
            captions=(f"dog {i}", f"cat {i // 2}", f"bird {i}")[: 2 + i % 2],
            extras={"swapped": f"c{i ^ 1}"},
        )
        for i in range(10)
    ]
    store = open_store(add_stream(tmp_path / "s.zarr", "motion", {clip.clip_id: 1 + i for i, clip in enumerate(clips)}))
    config, made = of_clips(store, clips)
    torch.manual_seed(0)
    return Counting(build_model(config.model, inputs(store, config, made.text))), made


@pytest.mark.parametrize("merged", [False, True])
def test_an_evaluation_computes_every_score_once(split: tuple[Counting, Split], merged: bool) -> None:
    model, data = split
    result = evaluate_split(model, data, dsl=True, merged=merged)
    assert {"video_to_text_groups", "dsl", "swapped_pairs"} < set(result)
    assert result["swapped_pairs"]["queries"] == 25
    assert model.pairs == len(data.captions) * len(data.clips) == 20 * 10


def test_block_size_and_scores_in_a_file_do_not_change_figures(
    split: tuple[Counting, Split], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, data = split
    expected = evaluate_split(model, data, dsl=True)
    scores = score_embeddings(model, *evaluate.encode(model, data))
    monkeypatch.setattr(evaluate, "TEXTS", 2)
    monkeypatch.setattr(evaluate, "VIDEOS", 3)
    monkeypatch.setattr(evaluate, "BLOCK", 4)
    monkeypatch.setattr(evaluate, "IN_MEMORY", 0)
    in_blocks = score_split(model, data)
    whole = slice(None)
    assert torch.allclose(in_blocks.block(whole, whole), scores.block(whole, whole), atol=1e-6)
    assert evaluate_split(model, data, dsl=True) == expected


def test_scores_too_large_for_memory_and_disk_are_an_error_with_a_remedy(
    split: tuple[Counting, Split], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(*given: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(evaluate, "IN_MEMORY", 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(AmexError, match=rf"20 captions and 10 clips need .* in {tmp_path}: No space .* TMPDIR"):
        score_split(*split)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".zarr"]
