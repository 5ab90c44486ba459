"""AME-Net with any options: padding never counts, everything learns, geometry is as documented."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from amex.train.models import RetrievalModel, build_model
from amex.train.models.relation import edge_geometry, node_geometry
from amex.train.options import AMENet as Options
from amex.train.options import Inputs

WIDTHS = {"objects": 6, "clips": 5, "frames": 4, "text": 7}
INPUTS = Inputs(widths=WIDTHS, objects=("objects",))
SMALL: dict[str, Any] = {
    "objects": "objects", "streams": ["clips", "frames"], "text": "text", "dim": 8, "graph_dim": 8, "graphs": 2,
    "key_dim": 4, "hidden": 9, "dropout": 0.0, "relation_dropout": 0.0, "bag_dropout": 0.0,
}  # fmt: skip


def batch(
    seed: int, *, size: int = 4, rows: int = 3, objects: int = 3, tokens: int = 5, pad: int = 0
) -> dict[str, Any]:
    """Random features of ``size`` pairs; ``pad`` adds masked rows, objects and tokens of noise."""
    rng = np.random.default_rng(seed)

    def behind(array: np.ndarray, *axes: int) -> Tensor:
        wider = np.random.default_rng(99).standard_normal([n + pad * (i in axes) for i, n in enumerate(array.shape)])
        wider[tuple(slice(0, n) for n in array.shape)] = array
        return torch.from_numpy(wider.astype(np.float32))

    def mask(there: np.ndarray, *axes: int) -> Tensor:
        wider = np.zeros([n + pad * (i in axes) for i, n in enumerate(there.shape)], bool)
        wider[tuple(slice(0, n) for n in there.shape)] = there
        return torch.from_numpy(wider)

    lengths = rng.integers(1, rows + 1, size)
    there = np.arange(rows) < lengths[:, None]
    shown = there[..., None] & (np.arange(objects) < rng.integers(0, objects + 1, (size, rows))[..., None])
    corners = np.sort(rng.random((size, rows, objects, 2, 2)), axis=-2).reshape(size, rows, objects, 4)
    # Times after a clip's last row are padding and must not stretch the time scale.
    seconds = np.tile(np.arange(rows) / 5, (size, 1)) * there
    wider = np.zeros((size, rows + pad))
    wider[:, :rows] = seconds
    words = np.arange(tokens) < rng.integers(1, tokens + 1, size)[:, None]
    video = {
        "objects": {
            "values": behind(rng.standard_normal((size, rows, objects, 6)), 1, 2),
            "boxes": behind(corners, 1, 2),
            "scores": behind(rng.random((size, rows, objects)), 1, 2),
            "mask": mask(shown, 1, 2),
            "seconds": torch.from_numpy(wider.astype(np.float32)),
        },
        "clips": {"values": behind(rng.standard_normal((size, rows, 5)), 1), "mask": mask(there, 1)},
        "frames": {"values": behind(rng.standard_normal((size, rows, 4)), 1), "mask": mask(there, 1)},
    }
    text = {"values": behind(rng.standard_normal((size, tokens, 7)), 1), "mask": mask(words, 1)}
    each = torch.arange(size)
    return {"video": video, "text": text, "clip": each, "caption": each.clone(), "own": each.unsqueeze(1).clone()}


def confused(model: RetrievalModel, made: dict[str, Any]) -> Tensor:
    """The cross-entropy of a batch's pairs, as something to learn."""
    scores = 20 * model.score(*model.encode_pairs(made))
    return cross_entropy(scores, torch.arange(len(scores)))


SWITCHES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "relation only": {"global_branch": False},
    "global only": {"relation_branch": False},
    "the baseline": {"name": "global"},
    "spatial": {"graph": "spatial"},
    "temporal": {"graph": "temporal"},
    "joint": {"graph": "joint"},
    "no graph": {"graph": "none"},
    "any distance": {"distance": None},
    "no geometry": {"geometry": False},
    "two layers": {"graph_layers": 2},
    "no layer": {"graph_layers": 0},
    "mean pooling": {"pooling": "mean"},
    "gru": {"sequence": "gru", "text_sequence": "gru"},
    "transformer": {"sequence": "transformer", "text_sequence": "transformer"},
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_padding_never_changes_a_score(switches: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_model(Options(**SMALL, **switches), INPUTS).eval()
    scores = []
    for pad in (0, 1, 4):
        pairs = batch(3, pad=pad)
        scores.append(model.score(model.encode_videos(pairs["video"]), model.encode_texts(pairs["text"])))
    assert scores[0].isfinite().all()
    assert scores[0].std() > 1e-3
    assert torch.allclose(scores[0], scores[1], atol=1e-6)
    assert torch.allclose(scores[0], scores[2], atol=1e-6)


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_parameter_receives_gradients(switches: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_model(Options(**SMALL, **switches), INPUTS)
    confused(model, batch(1, size=16, rows=4, objects=4)).backward()
    # The last biases of keys and pooling shift a whole softmax: they have no effect.
    shifts = ("key.bias", "scores.3.bias", "bias.2.bias")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.endswith(shifts):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("switch", ["as it comes", "relation only", "global only"])
def test_embeddings_have_length_one_and_scores_are_cosines(switch: str) -> None:
    model = build_model(Options(**SMALL, **SWITCHES[switch]), INPUTS).eval()
    pairs = batch(5)
    videos, texts = model.encode_videos(pairs["video"]), model.encode_texts(pairs["text"])
    expected = sum(w * texts[space] @ videos[space].T for space, w in model.level_weights.items())
    assert torch.allclose(model.score(videos, texts), expected, atol=1e-6)
    assert all(torch.allclose(x.norm(dim=-1), torch.ones(4), atol=1e-5) for x in (*videos.values(), *texts.values()))


def test_a_clip_without_objects_and_a_caption_of_one_word_have_finite_scores() -> None:
    model = build_model(Options(**SMALL), INPUTS).eval()
    pairs = batch(2)
    pairs["video"]["objects"]["mask"][:] = False
    for stream in ("clips", "frames"):
        pairs["video"][stream]["mask"][0] = False
    pairs["text"]["mask"][:, 1:] = False
    assert model.score(model.encode_videos(pairs["video"]), model.encode_texts(pairs["text"])).isfinite().all()


def test_the_relation_branch_sees_who_goes_to_whom() -> None:
    """The same objects at the same places in another order in time: only the graph's geometry distinguishes them."""
    pairs = batch(4, size=1, rows=3, objects=2)["video"]
    pairs["objects"]["mask"][:] = True
    pairs["objects"]["seconds"] = torch.tensor([[0.0, 0.2, 0.4]])
    backwards = {name: x if name == "seconds" else x.flip(1) for name, x in pairs["objects"].items()}
    for graph, geometry, differs in (("both", True, True), ("joint", True, True), ("none", False, False)):
        torch.manual_seed(0)
        model = build_model(Options(**SMALL, global_branch=False, graph=graph, geometry=geometry), INPUTS).eval()
        a, b = model.encode_videos(pairs), model.encode_videos({"objects": backwards})
        assert torch.allclose(a["relation"], b["relation"], atol=1e-5) is not differs, graph


def test_the_distance_mask_cuts_far_edges_and_only_those() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.1, 0.1], [0.1, 0.0, 0.2, 0.1], [0.8, 0.8, 0.9, 0.9]]])
    objects = {
        "values": torch.zeros(1, 1, 3, 6), "boxes": boxes.unsqueeze(1), "scores": torch.ones(1, 1, 3),
        "mask": torch.ones(1, 1, 3, dtype=torch.bool), "seconds": torch.zeros(1, 1),
    }  # fmt: skip
    for geometry in (True, False):
        options = Options(**SMALL, global_branch=False, graph="spatial", distance=0.2, geometry=geometry)
        joined, _ = build_model(options, INPUTS).relation.graph.wire("spatial", objects)
        assert joined[0].tolist() == [[True, True, False], [True, True, False], [False, False, True]]


def test_geometry_has_the_documented_components() -> None:
    a = torch.tensor([[[0.0, 0.0, 0.2, 0.2]]])
    b = torch.tensor([[[0.1, 0.0, 0.3, 0.4]]])
    actual = edge_geometry(a, b, torch.tensor([[1.0]]), torch.tensor([[1.5]]))[0, 0, 0]
    middle = [0.1, 0.1]
    overlap = 0.02 / (0.04 + 0.08 - 0.02)
    expected = [2 * middle[0], 2 * middle[1], 0.0, np.log(2), 2 * np.hypot(*middle), overlap, 0.5, 0.8, 0.8]
    assert np.allclose(actual.numpy(), expected, atol=1e-4)
    reverse = edge_geometry(b, a, torch.tensor([[1.5]]), torch.tensor([[1.0]]))[0, 0, 0]
    # Seen from the later time, the motion has the same direction.
    assert np.allclose(reverse[7:].numpy(), actual[7:].numpy(), atol=1e-4)
    node = node_geometry(a.unsqueeze(1), torch.ones(1, 1, 1), torch.zeros(1, 1))[0, 0, 0]
    assert np.allclose(node.numpy(), [-0.8, -0.8, 0.4, 0.4, 0.16, 1, -1], atol=1e-6)


def test_a_bag_learns_words_and_knows_no_padding() -> None:
    torch.manual_seed(0)
    model = build_model(Options(**SMALL, text_bag=True), Inputs(widths=WIDTHS, words=20))
    pairs = batch(3, size=16)
    pairs["text"]["ids"] = torch.randint(1, 20, (16, 5))
    pairs["text"]["ids"][:, 3:] = 0
    rolled = pairs["text"] | {"ids": pairs["text"]["ids"].roll(1, 0)}
    before = model.eval().encode_texts(pairs["text"])["relation"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        confused(model.train(), pairs).backward()
        optimizer.step()
    model.eval()
    own = model.encode_texts(pairs["text"])["relation"]
    assert not torch.allclose(own, before, atol=1e-2)
    assert torch.equal(own, model.encode_texts(pairs["text"] | {"ids": pairs["text"]["ids"][:, :3]})["relation"])
    assert not torch.allclose(own, model.encode_texts(rolled)["relation"], atol=1e-2)
