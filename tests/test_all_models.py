"""What holds of every model: padding is never seen, all learns, and several processes are as one."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ON_CPU
from test_models import INPUTS, SMALL, batch
from torch.nn.functional import pad

from amex.language.roles import role_graph
from amex.train.config import Train, check_config
from amex.train.evaluate import parameters
from amex.train.fit import parameter_groups
from amex.train.models import RetrievalModel, build_model
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
    "mcsan, concepts diverge": MCSAN | {"divergence": "attributes", "attributes": "separate"},
    "mcsan, bare": MCSAN | {"divergence": "off", "attributes": "off", "levels": ["global", "action"]},
    "hcmi": HCMI,
    "hcmi, objects": HCMI | {"streams": OBJECTS, "aggregation": "queries", "temporal_layers": 1},
    "hcmi, clusters": HCMI | {"aggregation": "clusters", "denoise": "and", "token_weights": "uniform"},
    "hcmi, one level": HCMI | {"levels": ["video_sentence"], "denoise": "off", "enhancement": 0.0, "positives": "sum"},
    "dual encoding": DUAL,
    "dual encoding, words": DUAL | {"text": "words", "word_dim": 7},
    "clip": {"name": "clip_mean", "streams": ["clips"], "text": "text"},
}
CONCEPTS = {"entity": 5, "action": 4, "relation": 3}


def build(case: str, **more: Any) -> RetrievalModel:
    torch.manual_seed(0)
    options = check_config({"model": CASES[case] | more}, case).model
    # Where captions come as token features there is no vocabulary.
    words = 30 if options.text == "words" else 0
    inputs = Inputs(widths=INPUTS.widths, objects=("objects",), words=words, sentence=5, concepts=CONCEPTS)
    return build_model(options, inputs)


def make(case: str, size: int = 4, more: int = 0) -> dict[str, Any]:
    """A batch of pairs as the model of a case takes it, with ``more`` rows, objects and words behind masks."""
    made = batch(0, size=size, pad=more)
    made["second"] = batch(1, size=size, pad=more)["video"]
    made["text"]["sentence"] = torch.randn(size, 5, generator=torch.Generator().manual_seed(2))
    captions = [CAPTIONS[i % len(CAPTIONS)] for i in range(size)]
    # What a person says of a clip is not what is said of another: pairs must differ, or nothing can be ranked.
    captions = [f"{caption} {i}" for i, caption in enumerate(captions)]
    name, options = CASES[case]["name"], CASES[case]
    if name in ("hgr", "mcsan"):
        graphs = {caption: role_graph(caption) for caption in captions}
        number = {word: n for n, word in enumerate(sorted({w for c in captions for w in c.split()}), start=2)}
        sizes = {"relations": 3, "triples": options.get("relation") == "triple"} if name == "mcsan" else {}
        made["text"] = graph_tensors(captions, graphs, number.__getitem__, **sizes)
        for key, wider in (("ids", 1), ("mask", 0), ("nodes", 0)):
            made["text"][key] = pad(made["text"][key], (0, more), value=wider)
    elif options.get("text") == "words":
        made["text"] = {"ids": torch.arange(2, 2 + 5 * size).reshape(size, 5), "mask": torch.ones(size, 5).bool()}
        made["text"] = {key: pad(x, (0, more)) for key, x in made["text"].items()}
    chance = torch.Generator().manual_seed(3)
    made["concepts"] = {
        kind: {"truth": (torch.rand(size, n, generator=chance) < 0.4).float(), "mask": torch.ones(size, n)}
        for kind, n in CONCEPTS.items()
    }
    return made


@pytest.mark.parametrize("case", CASES)
def test_padding_never_changes_a_score(case: str) -> None:
    model = build(case).eval()
    plain, padded = make(case), make(case, more=3)
    with torch.inference_mode():
        expected = model.score(model.encode_videos(plain["video"]), model.encode_texts(plain["text"]))
        found = model.score(model.encode_videos(padded["video"]), model.encode_texts(padded["text"]))
    assert expected.shape == (4, 4)
    assert expected.std() > 1e-4
    assert torch.allclose(expected, found, atol=1e-5)


# Losses that are made of scores.
OF_SCORES = re.compile(r"loss_((attribute_)?ranking|relation|global|frame_word|clip_phrase|video_sentence|margin)$")


@pytest.mark.parametrize("case", CASES)
def test_scores_are_float32_under_mixed_precision(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = build(case).train(), make(case, size=5)
    with torch.autocast("cpu", torch.bfloat16):
        videos, texts = model.encode_pairs(made)
        second = model.encode_videos(made["second"])
        monkeypatch.setattr(model, "encode_pairs", lambda batch: (videos, texts))
        monkeypatch.setattr(model, "encode_videos", lambda video: second)
        mixed, scores = model.loss(made), model.score(videos, texts)
    whole = ({name: x if x.dtype == torch.bool else x.float() for name, x in side.items()} for side in (videos, texts))
    expected = model.score(*whole)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, expected)
    assert not torch.equal(scores, scores.bfloat16().float())
    plain = model.loss(made)
    compared = {name for name in plain if OF_SCORES.match(name)}
    assert compared
    assert {name: mixed[name].item() for name in compared} == {name: plain[name].item() for name in compared}


@pytest.mark.parametrize("case", ["amenet", "dual encoding", "clip"])
def test_embeddings_have_length_one_under_mixed_precision(case: str) -> None:
    model = build(case).eval()
    with torch.autocast("cpu", torch.bfloat16):
        sides = model.encode_pairs(make(case))
    for vectors in (x for side in sides for x in side.values()):
        assert torch.allclose(vectors.norm(dim=-1), torch.ones(len(vectors)), atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_pair_is_learned_by_heart(case: str) -> None:
    model = build(case, ranking="contrastive") if CASES[case]["name"] != "hcmi" else build(case)
    model.train()
    made = make(case)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    seen = []
    for step in range(60):
        model.progress = step / 60
        losses = model.loss(made)
        total = sum(value for name, value in losses.items() if name.startswith("loss"))
        assert torch.isfinite(total)
        seen.append(total.item())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    assert seen[-1] < (0.95 if case in ("clip", "amenet") else 0.6) * seen[0]


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_that_a_case_has_learns(case: str) -> None:
    model = build(case).train()
    made = make(case)
    with torch.no_grad():  # what begins at zero would hide what is behind it
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    sum(value for name, value in model.loss(made).items() if name.startswith("loss")).backward()
    unused = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    # A level that is left out has its projections still, and the graph its nodes.
    allowed = ("one level" in case) or ("bare" in case)
    assert allowed or not unused, unused
    assert parameters(model) > 0


# Parameters that weight decay draws towards zero, by what they are called in their module.
DECAY = re.compile(r"\b(weight|weight_[ih]h_l\d+(_reverse)?|in_proj_weight|message|queries)$")
NORMS = (torch.nn.LayerNorm, torch.nn.BatchNorm1d)


@pytest.mark.parametrize("case", CASES)
def test_weight_decay_leaves_biases_norms_and_the_temperature_alone(case: str) -> None:
    model = build(case)
    of_norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    expected = {name for name, p in model.named_parameters() if DECAY.search(name) and id(p) not in of_norms}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    groups = parameter_groups(Train(lr=0.1, weight_decay=0.5), model)
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


SPLIT = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from test_all_models import build, make
from mmengine.model import MMDistributedDataParallel

def part(x, rank, world):
    if isinstance(x, dict):
        return {{k: part(v, rank, world) for k, v in x.items()}}
    return x[rank::world]

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    torch.distributed.init_process_group("gloo")
found = []
for case in {cases!r}:
    wrapped = model = build(case).train()
    made = make(case, size=8)
    if world > 1:
        wrapped = MMDistributedDataParallel(module=model, find_unused_parameters=True)
        made = part(made, rank, world)
        if rank and "values" in made["text"]:  # one process's captions are longer than the other's
            made["text"] |= {{"values": torch.nn.functional.pad(made["text"]["values"], (0, 0, 0, 2)),
                             "mask": torch.nn.functional.pad(made["text"]["mask"], (0, 2))}}
    losses = wrapped(mode="loss", **made)
    sum(v for k, v in losses.items() if k.startswith("loss")).backward()
    grads = {{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}
    found.append(({{k: v.detach() for k, v in losses.items()}}, grads))
if rank == 0:
    torch.save(found, sys.argv[1])
if world > 1:
    torch.distributed.barrier()
    os._exit(0)  # the threads of gloo now and then abort an interpreter that is shutting down
"""


def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = ["hgr", "hcmi"]  # MCSAN and Dual Encoding normalize over the clips at hand, each process over its own
    script = tmp_path / "split.py"
    script.write_text(SPLIT.format(tests=str(Path(__file__).parent), cases=cases))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, **ON_CPU}
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "one.pt")])
    runpy.run_path(str(script))
    subprocess.run([*torchrun, script, tmp_path / "two.pt"], check=True, env=environment, timeout=120)
    alone, together = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("one", "two"))
    for case, (one, grads), (two, shared) in zip(cases, alone, together, strict=True):
        for name, value in one.items():
            assert value.item() == pytest.approx(two[name].item(), rel=1e-4), (case, name)
        assert grads.keys() == shared.keys()
        for name, grad in grads.items():
            assert torch.allclose(grad, shared[name], atol=1e-5), (case, name)
