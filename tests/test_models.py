"""Models keep their promises whatever their switches: padding never counts, losses are the textbook's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from amex.train.losses import Contrastive, ModalityClassifier, Ranking, hinge
from amex.train.models import build_model
from amex.train.models.relation import edge_geometry, node_geometry
from amex.train.options import AMENet as Options
from amex.train.options import Inputs

WIDTHS = {"objects": 6, "clips": 5, "frames": 4, "text": 7}
INPUTS = Inputs(widths=WIDTHS, objects=("objects",))
SMALL: dict[str, Any] = {
    "objects": "objects", "streams": ["clips", "frames"], "text": "text", "dim": 8, "graph_dim": 8, "graphs": 2,
    "key_dim": 4, "adversarial_hidden": 8, "dropout": 0.0,
}  # fmt: skip


def batch(
    seed: int, *, size: int = 4, rows: int = 3, objects: int = 3, tokens: int = 5, pad: int = 0
) -> dict[str, Any]:
    """Random features of ``size`` pairs; with ``pad`` so many more rows, objects and tokens of noise behind masks."""
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
    # Times past a clip's last row are not there: what follows must not stretch them.
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
    return {"video": video, "text": text, "clip": torch.arange(size), "caption": torch.arange(size)}


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
    "separate heads": {"text_heads": "separate"},
    "alternating": {"adversarial": "alternating"},
    "not adversarial": {"adversarial": "off"},
    "hardest": {"negatives": "hardest"},
    "contrastive": {"ranking": "contrastive"},
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_padding_never_changes_a_score(switches: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_model(Options(**SMALL, **switches), INPUTS).eval()
    scores = []
    for pad in (0, 1, 4):
        made = batch(3, pad=pad)
        scores.append(model.score(model.encode_videos(made["video"]), model.encode_texts(made["text"])))
    assert scores[0].isfinite().all()
    assert scores[0].std() > 1e-3
    assert torch.allclose(scores[0], scores[1], atol=1e-6)
    assert torch.allclose(scores[0], scores[2], atol=1e-6)


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_every_learned_number_learns(switches: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build_model(Options(**SMALL, **switches), INPUTS)
    model.progress = 0.5
    losses = model.loss(batch(1, size=16, rows=4, objects=4))
    sum(value for name, value in losses.items() if name.startswith("loss")).backward()
    # The keys' and pooling's last bias shift a whole softmax: nothing can depend on them.
    shifts = ("key.bias", "scores.3.bias", "bias.2.bias")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not name.endswith(shifts):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("switch", ["as it comes", "relation only", "global only"])
def test_embeddings_have_length_one_and_scores_are_cosines(switch: str) -> None:
    model = build_model(Options(**SMALL, **SWITCHES[switch], text_heads="separate"), INPUTS).eval()
    made = batch(5)
    videos, texts = model.encode_videos(made["video"]), model.encode_texts(made["text"])
    expected = sum(w * texts[space] @ videos[space].T for space, w in model.weights.items())
    assert torch.allclose(model.score(videos, texts), expected, atol=1e-6)
    assert all(torch.allclose(x.norm(dim=-1), torch.ones(4), atol=1e-5) for x in (*videos.values(), *texts.values()))


def test_a_clip_without_objects_and_a_caption_of_one_word_have_finite_scores() -> None:
    model = build_model(Options(**SMALL), INPUTS).eval()
    made = batch(2)
    made["video"]["objects"]["mask"][:] = False
    for stream in ("clips", "frames"):
        made["video"][stream]["mask"][0] = False
    made["text"]["mask"][:, 1:] = False
    assert model.score(model.encode_videos(made["video"]), model.encode_texts(made["text"])).isfinite().all()


def test_the_relation_branch_sees_who_goes_to_whom() -> None:
    """The same objects at the same places in the other order in time: only the graph's geometry tells them apart."""
    made = batch(4, size=1, rows=3, objects=2)["video"]
    made["objects"]["mask"][:] = True
    made["objects"]["seconds"] = torch.tensor([[0.0, 0.2, 0.4]])
    backwards = {name: x if name == "seconds" else x.flip(1) for name, x in made["objects"].items()}
    for graph, geometry, differs in (("both", True, True), ("joint", True, True), ("none", False, False)):
        torch.manual_seed(0)
        model = build_model(Options(**SMALL, global_branch=False, graph=graph, geometry=geometry), INPUTS).eval()
        a, b = model.encode_videos(made), model.encode_videos({"objects": backwards})
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


def test_geometry_is_what_it_says() -> None:
    a = torch.tensor([[[0.0, 0.0, 0.2, 0.2]]])
    b = torch.tensor([[[0.1, 0.0, 0.3, 0.4]]])
    found = edge_geometry(a, b, torch.tensor([[1.0]]), torch.tensor([[1.5]]))[0, 0, 0]
    middle = [0.1, 0.1]
    overlap = 0.02 / (0.04 + 0.08 - 0.02)
    expected = [2 * middle[0], 2 * middle[1], 0.0, np.log(2), 2 * np.hypot(*middle), overlap, 0.5, 0.8, 0.8]
    assert np.allclose(found.numpy(), expected, atol=1e-4)
    back = edge_geometry(b, a, torch.tensor([[1.5]]), torch.tensor([[1.0]]))[0, 0, 0]
    assert np.allclose(back[7:].numpy(), found[7:].numpy(), atol=1e-4)  # seen from later on, it moved the same way
    node = node_geometry(a.unsqueeze(1), torch.ones(1, 1, 1), torch.zeros(1, 1))[0, 0, 0]
    assert np.allclose(node.numpy(), [-0.8, -0.8, 0.4, 0.4, 0.16, 1, -1], atol=1e-6)


@given(st.integers(2, 7), st.integers(0, 10**6), st.floats(0, 1))
def test_the_hinge_is_the_textbooks_loop(size: int, seed: int, margin: float) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (size, size))
    excused = rng.random((size, size)) < 0.2
    excused |= excused.T
    hardest = everything = 0.0
    for i in range(size):
        others = [j for j in range(size) if j != i and not excused[i, j]]
        rows = [max(0.0, margin + scores[i, j] - scores[i, i]) for j in others]
        columns = [max(0.0, margin + scores[j, i] - scores[i, i]) for j in others]
        hardest += (max(rows, default=0) + max(columns, default=0)) / size
        everything += (sum(rows) + sum(columns)) / size
    given_scores = torch.from_numpy(scores)
    assert hinge(given_scores, margin, "hardest", torch.from_numpy(excused)).item() == pytest.approx(hardest)
    assert hinge(given_scores, margin, "all", torch.from_numpy(excused)).item() == pytest.approx(everything)


def test_clips_with_one_caption_are_no_negatives_unless_asked_for() -> None:
    torch.manual_seed(0)
    made = batch(7, size=6)
    made["caption"][:] = 0
    for same, expected in (("ignored", True), ("negative", False)):
        model = build_model(Options(**SMALL, adversarial="off", same_caption=same), INPUTS)
        loss = model.loss(made)
        assert (sum(x.item() for x in loss.values()) == 0) is expected


@pytest.mark.parametrize(
    ("same", "ranking", "expected"),
    [
        # Pairs 0 and 1 are two captions of one clip; 1 and 2 share a caption. The hardest of each row are 0.1, 0.3
        # and 0.2 over, of each column 0, 0.3 and 0.2: means of 0.6 / 3 and 0.5 / 3.
        ("negative", "hinge", 1.1 / 3),
        # Only 0 and 2 are left to be compared, and they are far apart.
        ("ignored", "hinge", 0.0),
        ("negative", "contrastive", None),
        ("ignored", "contrastive", None),
    ],
)
def test_same_caption_negative_leaves_only_the_diagonal_positive_as_in_hgr(
    same: str, ranking: str, expected: float | None
) -> None:
    scores = torch.tensor([[0.9, 0.8, 0.3], [0.5, 0.7, 0.8], [0.4, 0.8, 0.8]], dtype=torch.float64)
    pairs = {"clip": torch.tensor([4, 4, 7]), "caption": torch.tensor([0, 1, 1])}
    loss = Ranking(Options(**SMALL, same_caption=same, ranking=ranking, negatives="hardest"))(scores, pairs).item()
    if expected is None:  # CLIP's cross-entropy, temperature 0.05, over all pairs or over 0 and 2 alone
        kept = [[0, 1, 2]] * 3 if same == "negative" else [[0, 2], [1], [0, 2]]
        logits = (20 * scores).numpy()
        rows = [np.log(np.exp(logits[i, kept[i]]).sum()) - logits[i, i] for i in range(3)]
        columns = [np.log(np.exp(logits[kept[i], i]).sum()) - logits[i, i] for i in range(3)]
        expected = float(np.mean(rows) + np.mean(columns)) / 2
    assert loss == pytest.approx(expected, abs=1e-6)


def spaces(seed: int, size: int = 64) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    videos = torch.randn(size, 8, generator=generator) + 1
    texts = torch.randn(size, 8, generator=generator) - 1
    return {"relation": videos.requires_grad_()}, {"relation": texts.requires_grad_()}


def test_reversal_teaches_the_classifier_one_way_and_the_encoders_the_other() -> None:
    torch.manual_seed(0)
    adversary = ModalityClassifier(["relation"], 8, mode="reversal", weight=0.3, hidden=8, lr=1e-3)
    plain = ModalityClassifier(["relation"], 8, mode="reversal", weight=0.3, hidden=8, lr=1e-3)
    plain.load_state_dict(adversary.state_dict())
    videos, texts = spaces(0)
    adversary(videos, texts, progress=1.0)["loss_adversarial"].backward()
    reversed_, own = videos["relation"].grad.clone(), [p.grad.clone() for p in adversary.parameters()]
    videos, texts = spaces(0)
    entropy, _ = plain._entropy(videos, texts)
    entropy.backward()
    assert torch.allclose(reversed_, -0.3 * videos["relation"].grad, rtol=1e-3)
    assert all(torch.allclose(a, p.grad) for a, p in zip(own, plain.parameters(), strict=True))
    videos, texts = spaces(0)
    adversary(videos, texts, progress=0.0)["loss_adversarial"].backward()
    assert videos["relation"].grad.abs().sum() == 0  # the factor grows from nothing


def test_alternating_encoders_are_moved_most_where_the_classifiers_are_sure() -> None:
    torch.manual_seed(0)
    adversary = ModalityClassifier(["relation"], 8, mode="alternating", weight=1.0, hidden=8, lr=1e-2)
    slopes = []
    for step in range(200):
        videos, texts = spaces(step)
        found = adversary(videos, texts, progress=0.0)
        found["loss_adversarial"].backward()
        slopes.append((found["modality_accuracy"].item(), videos["relation"].grad.norm().item()))
    assert slopes[-1][0] > 0.99
    assert slopes[-1][1] > 5 * slopes[0][1]
    weights = [parameter.clone() for parameter in adversary.parameters()]
    adversary(*spaces(0), progress=1.0)  # the encoders rest
    assert all(torch.equal(a, b) for a, b in zip(weights, adversary.parameters(), strict=True))


def test_the_contrastive_loss_is_the_mean_of_two_cross_entropies_without_those_excused() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.4], [0.3, 0.8, 0.2], [0.5, 0.6, 0.7]])
    loss, excused = Contrastive(0.1), torch.eye(3, dtype=torch.bool)
    e = (scores / 0.1).exp()
    expected = -sum((e[i, i] / e[i].sum()).log() + (e[i, i] / e[:, i].sum()).log() for i in range(3)) / 6
    assert loss(scores, excused).item() == pytest.approx(expected.item(), rel=1e-5)
    excused[0, 2] = excused[2, 0] = True
    e[0, 2] = e[2, 0] = 0
    expected = -sum((e[i, i] / e[i].sum()).log() + (e[i, i] / e[:, i].sum()).log() for i in range(3)) / 6
    assert loss(scores, excused).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_bag_begins_without_a_say_learns_words_and_knows_no_padding() -> None:
    torch.manual_seed(0)
    model = build_model(Options(**SMALL, text_bag=True, adversarial="off"), Inputs(widths=WIDTHS, words=20))
    made = batch(3, size=16)
    made["text"]["ids"] = torch.randint(1, 20, (16, 5))
    made["text"]["ids"][:, 3:] = 0
    rolled = made["text"] | {"ids": made["text"]["ids"].roll(1, 0)}
    before = model.eval().encode_texts(made["text"])["relation"]
    assert torch.equal(before, model.encode_texts(rolled)["relation"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        sum(model.train().loss(made).values()).backward()
        optimizer.step()
    model.eval()
    own = model.encode_texts(made["text"])["relation"]
    assert not torch.allclose(own, before, atol=1e-2)
    assert torch.equal(own, model.encode_texts(made["text"] | {"ids": made["text"]["ids"][:, :3]})["relation"])
    assert not torch.allclose(own, model.encode_texts(rolled)["relation"], atol=1e-2)


def test_alternating_classifiers_learn_by_themselves_and_are_kept_out_of_the_encoders_step() -> None:
    torch.manual_seed(0)
    adversary = ModalityClassifier(["relation"], 8, mode="alternating", weight=0.1, hidden=8, lr=1e-2)
    accuracy = []
    for step in range(60):
        videos, texts = spaces(step)
        out = adversary(videos, texts, progress=0.5)
        accuracy.append(float(out["modality_accuracy"]))
    out["loss_adversarial"].backward()
    assert accuracy[-1] > 0.95 > accuracy[0]
    assert videos["relation"].grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in adversary.parameters())
