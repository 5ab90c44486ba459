"""Layers that leave padding out compute what the plain form computes over all of it, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from amex.train.fitting import fast_products
from amex.train.models.baselines import MultiLevel
from amex.train.models.layers import Dropout, Present
from amex.train.models.phrases import RoleGraphLayer, largest, masked_softmax
from amex.train.options import DualEncoding

seeds = st.integers(0, 2**31)


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def some(seed: int, *shape: int, share: float = 0.4) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < share


def agree(ours: Tensor, plain: Tensor, *leaves: Tensor) -> None:
    assert torch.allclose(ours, plain, atol=1e-6)
    weights = torch.linspace(-1, 1, ours.numel()).view_as(ours)
    found = [torch.autograd.grad((x * weights).sum(), leaves, retain_graph=True) for x in (ours, plain)]
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=seeds, size=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5)))
def test_a_phrase_is_the_largest_of_its_words(seed: int, size: tuple[int, int, int]) -> None:
    captions, phrases, words = size
    x, has = drawn(seed, captions, words, 3), some(seed, captions, phrases, words)
    places = Present(has.any(-1))
    plain = x[:, None].masked_fill(~has[..., None], -math.inf).amax(2)
    plain = plain.masked_fill(~has.any(-1, keepdim=True), 0.0)
    agree(places.spread(largest(x, has, places)), plain, x)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, size=st.tuples(st.integers(1, 4), st.integers(1, 5)))
def test_a_graph_over_the_nodes_that_are_there_is_that_over_all(seed: int, size: tuple[int, int]) -> None:
    captions, nodes = size
    layer = RoleGraphLayer(4, 0.0)
    there = some(seed, captions, nodes, share=0.6)
    x = drawn(seed, captions, nodes, 4)
    zeroed = x * there.unsqueeze(-1)
    edges = some(seed + 1, captions, nodes, nodes) & there.unsqueeze(1) & there.unsqueeze(2)
    fits = layer.query(zeroed) @ layer.key(zeroed).transpose(1, 2) / math.sqrt(2)
    plain = layer.norm(zeroed + layer.context(masked_softmax(fits, edges) @ zeroed)) * there.unsqueeze(-1)
    agree(layer(zeroed, edges, Present(there)), plain, x)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), pad=st.integers(0, 2))
def test_a_convolution_over_rows_alone_is_that_over_padding(seed: int, lengths: list[int], pad: int) -> None:
    options = DualEncoding(rnn_dim=2, filters=3, dropout=0.0)
    encoder = MultiLevel(5, options, kernels=(2, 3))
    x = drawn(seed, len(lengths), max(lengths) + pad, 4)
    mask = torch.arange(x.shape[1]) < torch.tensor(lengths).unsqueeze(1)
    places = Present(mask)
    for convolution in encoder.convolutions:
        ours = encoder._largest(convolution, places.pick(x), places, mask.sum(1))
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


def test_products_in_training_keep_the_digits_of_float32() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(512, 256), torch.randn(300, 512)
    before = torch.get_float32_matmul_precision()
    exact = x.double() @ layer.weight.double().T + layer.bias.double()
    with fast_products():
        found = layer(x)
    assert (found - exact).abs().max() < 1e-5
    assert torch.get_float32_matmul_precision() == before
