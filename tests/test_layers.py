"""Layers that skip padding compute the same as the plain form over all positions, with gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amex.train.fitting import fast_matmul
from amex.train.models.baselines import MultiLevel
from amex.train.models.layers import Dropout, Present
from amex.train.models.phrases import RoleGraphLayer, masked_softmax, max_over_words
from amex.train.options import DualEncoding

seeds = st.integers(0, 2**31)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def some(seed: int, *shape: int, share: float = 0.4) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def agree(ours: Tensor, plain: Tensor, *leaves: Tensor) -> None:
    assert torch.allclose(ours, plain, atol=1e-6)
    weights = torch.linspace(-1, 1, ours.numel()).view_as(ours)
    actual = [torch.autograd.grad((x * weights).sum(), leaves, retain_graph=True) for x in (ours, plain)]
    for a, b in zip(*actual, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, size=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)))
def test_a_phrase_is_the_maximum_over_its_words(seed: int, size: tuple[int, int, int]) -> None:
    captions, phrases, words = size
    x, has = drawn(seed, captions, words, 3), some(seed, captions, phrases, words)
    places = Present(has.any(-1))
    plain = x[:, None].masked_fill(~has[..., None], -math.inf).amax(2)
    plain = plain.masked_fill(~has.any(-1, keepdim=True), 0.0)
    agree(places.spread(max_over_words(x, has, places)), plain, x)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, size=st.tuples(st.integers(1, 4), st.integers(1, 5)))
def test_a_graph_over_present_nodes_equals_one_over_padded_nodes(seed: int, size: tuple[int, int]) -> None:
    captions, nodes = size
    layer = RoleGraphLayer(4, 0.0)
    present = some(seed, captions, nodes, share=0.6)
    x = drawn(seed, captions, nodes, 4)
    zeroed = x * present.unsqueeze(-1)
    edges = some(seed + 1, captions, nodes, nodes) & present.unsqueeze(1) & present.unsqueeze(2)
    fits = layer.query(zeroed) @ layer.key(zeroed).transpose(1, 2) / math.sqrt(2)
    plain = layer.norm(zeroed + layer.context(masked_softmax(fits, edges) @ zeroed)) * present.unsqueeze(-1)
    agree(layer(zeroed, edges, Present(present)), plain, x)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), pad=st.integers(0, 2))
def test_a_convolution_over_present_rows_equals_one_over_padded_rows(seed: int, lengths: list[int], pad: int) -> None:
    options = DualEncoding(rnn_dim=2, filters=3, dropout=0.0)
    encoder = MultiLevel(5, options, kernels=(2, 3))
    x = drawn(seed, len(lengths), max(lengths) + pad, 4)
    mask = torch.arange(x.shape[1]) < torch.tensor(lengths).unsqueeze(1)
    places = Present(mask)
    for convolution in encoder.convolutions:
        ours = encoder._max_convolution(convolution, places.pick(x), places, mask.sum(1))
        plain = torch.stack(
            [convolution(row[:length].T[None]).relu().amax(-1)[0] for row, length in zip(x, lengths, strict=True)]
        )
        agree(ours, plain, x, convolution.weight, convolution.bias)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(share: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(999, 101)
    dropped = Dropout(share)(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(share, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / (1 - share)).item()}
    torch.manual_seed(0)
    assert torch.equal(Dropout(share)(x), dropped)
    assert torch.equal(Dropout(share).eval()(x), x)
    assert Dropout(share)(x[:0]).shape == (0, 101)


def test_matrix_products_in_training_keep_float32_precision() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(512, 256), torch.randn(300, 512)
    before = torch.get_float32_matmul_precision()
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    with fast_matmul():
        actual = layer(x)
    assert (actual - exact).abs().max() < 1e-5
    assert torch.get_float32_matmul_precision() == before
