"""Properties of every model: padding never counts, and every parameter learns."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from test_models import INPUTS, SMALL, batch
from torch.nn.functional import pad

from amex.language.roles import role_graph
from amex.train.config import TrainOptions, check_config
from amex.train.fitting import parameter_groups
from amex.train.learner import Learner
from amex.train.models import RetrievalModel, build_model
from amex.train.objective import Objective
from amex.train.options import SECTIONS, Inputs
from amex.train.rolegraphs import graph_tensors

CAPTIONS = ("a dog chases a cat", "the dog", "a man gives the small cat a ball and runs", "the cat is chased by a dog")
GRAPH = {"graph_dim": 8, "graphs": 2, "key_dim": 4}
ROWS = {"streams": ["clips", "frames"], "dim": 8, "dropout": 0.0}
WORDS = {"word_dim": 7, "text_dropout": 0.0, "role_dropout": 0.0}
HGR: dict[str, Any] = {"name": "hgr", **ROWS, **GRAPH, **WORDS}
MCSAN: dict[str, Any] = {"name": "mcsan", **ROWS, **GRAPH, **WORDS, "relations": 3}
HCMI: dict[str, Any] = {"name": "hcmi", **ROWS, **GRAPH, "text": "text", "clips": 2, "phrases": 2}
DUAL: dict[str, Any] = {"name": "dual_encoding", **ROWS, "text": "text", "rnn_dim": 4, "filters": 3}
OBJECTS = ["objects", "clips"]
CASES: dict[str, dict[str, Any]] = {
    "amenet": {"name": "amenet", **SMALL},
    "hgr": HGR,
    "hgr, objects": HGR | {"streams": OBJECTS},
    "hgr, one level": HGR | {"levels": ["noun"], "fusion": "sim", "role_layers": 0},
    "mcsan": MCSAN,
    "mcsan, objects": MCSAN | {"streams": OBJECTS, "relation": "triple", "attribute_norm": "separate"},
    "mcsan, projections apart": MCSAN | {"attributes": "separate"},
    "mcsan, bare": MCSAN | {"attributes": "off", "levels": ["global", "action"]},
    "hcmi": HCMI,
    "hcmi, objects": HCMI | {"streams": OBJECTS, "aggregation": "queries", "temporal_layers": 1},
    "hcmi, clusters": HCMI | {"aggregation": "clusters", "token_weights": "uniform"},
    "hcmi, one level": HCMI | {"levels": ["video_sentence"]},
    "dual encoding": DUAL,
    "dual encoding, words": DUAL | {"text": "words", "word_dim": 7},
    "clip": {"name": "clip_mean", "streams": ["clips"], "text": "text"},
}
CONCEPTS = {"entity": 5, "action": 4, "relation": 3}


def build(case: str, **more: Any) -> RetrievalModel:
    torch.manual_seed(0)
    options = check_config({"model": CASES[case] | more}, case).model
    # If captions come as token features, there is no vocabulary.
    words = 30 if options.text == "words" else 0
    inputs = Inputs(widths=INPUTS.widths, objects=("objects",), words=words, sentence=5, concepts=CONCEPTS)
    return build_model(options, inputs)


def learner(case: str, *, encode_at_once: int = 0, dropout: float = 0.0, **objective: Any) -> Learner:
    """A case's model with an objective; by default the model's own."""
    given = {"model": CASES[case] | {"dropout": dropout}, "objective": {"adversary_hidden": 8} | objective}
    model = build(case, dropout=dropout)
    return Learner(
        model, Objective(check_config(given, case).objective, model, CONCEPTS), encode_at_once=encode_at_once
    )


def make(case: str, size: int = 4, more: int = 0) -> dict[str, Any]:
    """A batch of pairs for the model of a case, with ``more`` masked rows, objects and words."""
    pairs = batch(0, size=size, pad=more)
    pairs["second"] = batch(1, size=size, pad=more)["video"]
    pairs["text"]["sentence"] = torch.randn(size, 5, generator=torch.Generator().manual_seed(2))
    captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(size)]
    # Captions of different clips must differ, or nothing can be ranked.
    captions = [f"{caption} {i}" for i, caption in enumerate(captions)]
    name, options = CASES[case]["name"], CASES[case]
    if name in ("hgr", "mcsan"):
        graphs = {caption: role_graph(caption) for caption in captions}
        number = {word: n for n, word in enumerate(sorted({w for c in captions for w in c.split()}), start=2)}
        sizes = {"relations": 3, "triples": options.get("relation") == "triple"} if name == "mcsan" else {}
        pairs["text"] = graph_tensors(captions, graphs, number.__getitem__, **sizes)
        for key, wider in (("ids", 1), ("mask", 0), ("nodes", 0)):
            pairs["text"][key] = pad(pairs["text"][key], (0, more), value=wider)
    elif options.get("text") == "words":
        pairs["text"] = {"ids": torch.arange(2, 2 + 5 * size).reshape(size, 5), "mask": torch.ones(size, 5).bool()}
        pairs["text"] = {key: pad(x, (0, more)) for key, x in pairs["text"].items()}
    chance = torch.Generator().manual_seed(3)
    pairs["concepts"] = {
        kind: {"truth": (torch.rand(size, n, generator=chance) < 0.4).float(), "mask": torch.ones(size, n)}
        for kind, n in CONCEPTS.items()
    }
    return pairs


@pytest.mark.parametrize("case", CASES)
def test_padding_never_changes_a_score(case: str) -> None:
    model = build(case).eval()
    plain, padded = make(case), make(case, more=3)
    with torch.inference_mode():
        expected = model.score(model.encode_videos(plain["video"]), model.encode_texts(plain["text"]))
        actual = model.score(model.encode_videos(padded["video"]), model.encode_texts(padded["text"]))
    assert expected.shape == (4, 4)
    assert expected.std() > 1e-4
    assert torch.allclose(expected, actual, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_scores_and_losses_are_float32_under_mixed_precision(case: str) -> None:
    trained, pairs = learner(case).train(), make(case, size=5)
    model, objective = trained.model, trained.objective
    with torch.autocast("cpu", torch.bfloat16):
        videos, texts = model.encode_pairs(pairs)
        second = model.encode_videos(pairs["second"])
        mixed, scores = objective(model, videos, texts, pairs, second=second), model.score(videos, texts)
    whole = ({name: x if x.dtype == torch.bool else x.float() for name, x in side.items()} for side in (videos, texts))
    expected = model.score(*whole)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)
    assert not torch.equal(scores, scores.bfloat16().float())
    plain = objective(model, videos, texts, pairs, second=second)
    assert {name: x.item() for name, x in mixed.items()} == {name: x.item() for name, x in plain.items()}


@pytest.mark.parametrize("case", ["amenet", "dual encoding", "clip"])
def test_embeddings_have_length_one_under_mixed_precision(case: str) -> None:
    model = build(case).eval()
    with torch.autocast("cpu", torch.bfloat16):
        sides = model.encode_pairs(make(case))
    for vectors in (x for side in sides for x in side.values()):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(vectors)), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_model_can_overfit_one_pair(case: str) -> None:
    given = {} if CASES[case]["name"] == "hcmi" else {"contrastive": {"levels": 1}}
    trained = learner(case, **given).train()
    pairs = make(case)
    optimizer = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], lr=0.02)
    observed = []
    for step in range(60):
        trained.progress = step / 60
        losses = trained(pairs)
        total = sum(value for name, value in losses.items() if name.startswith("loss"))
        assert torch.isfinite(total)
        observed.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert observed[-1] < (0.95 if case in ("clip", "amenet") else 0.6) * observed[0]


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_of_a_case_receives_gradients(case: str) -> None:
    trained = learner(case).train()
    model, pairs = trained.model, make(case)
    with torch.no_grad():  # weights that start at zero would hide the gradients behind them
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    sum(value for name, value in trained(pairs).items() if name.startswith("loss")).backward()
    unused = {name for name, p in trained.named_parameters() if p.requires_grad and p.grad is None}
    # A level that is switched off still has projections, and the graph its nodes.
    allowed = ("one level" in case) or ("bare" in case)
    assert allowed or not unused, unused


# Names of the parameters that weight decay applies to, within their modules.
DECAY = re.compile(r"\b(weight|weight_[ih]h_l\d+(_reverse)?|in_proj_weight|message|queries)$")
NORMS = (torch.nn.LayerNorm, torch.nn.BatchNorm1d)


@pytest.mark.parametrize("case", CASES)
def test_weight_decay_skips_biases_norms_and_the_temperature(case: str) -> None:
    model = learner(case)
    of_norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    expected = {name for name, p in model.named_parameters() if DECAY.search(name) and id(p) not in of_norms}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = parameter_groups(TrainOptions(lr=0.1, weight_decay=0.5), model)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.AdamW(groups).step()
    after = dict(model.named_parameters())
    shrunk = {name for name, x in before.items() if x.any() and torch.allclose(after[name], x * (1 - 0.1 * 0.5))}
    same = {name for name, x in before.items() if torch.equal(after[name], x)}
    assert shrunk == {name for name in expected if before[name].any()}
    assert same == before.keys() - shrunk


def test_every_model_has_a_case_here() -> None:
    assert {case["name"] for case in CASES.values()} | {"global"} == set(SECTIONS)
