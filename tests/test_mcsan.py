"""MCSAN: the shared projection, concept labels and their masks, relationships as nodes."""

from __future__ import annotations

import torch
from test_all_models import build, make

from amex.language.roles import role_graph
from amex.train.concepts import Concepts, concepts_of
from amex.train.rolegraphs import ROLES, graph_tensors


def test_shared_attributes_have_one_projection_and_separate_ones_two() -> None:
    model = build("mcsan")
    for level in ("entity", "action", "relationship"):
        (weight,) = [
            p for n, p in model.named_parameters() if n.startswith(f"attributes.{level}.project") and p.ndim == 2
        ]
        batch = make("mcsan")
        videos, texts = model.encode_videos(batch["video"]), model.encode_texts(batch["text"])
        for side in (videos, texts):  # the same weight has a gradient from either side
            (grad,) = torch.autograd.grad(side[f"{level} concepts"].square().sum(), weight, retain_graph=True)
            assert grad.abs().sum() > 0
    apart = build("mcsan", attributes="separate")
    assert (
        sum(n.startswith("attributes.entity.project") and n.endswith("weight") for n, _ in apart.named_parameters())
        == 2
    )


def test_shared_statistics_combine_both_sides_and_separate_ones_do_not() -> None:
    model, batch = build("mcsan").train(), make("mcsan")
    observed: dict[str, list[torch.Tensor]] = {}
    for level, classify in model.attributes.items():
        (norm,) = classify.norm.values()
        norm.register_forward_pre_hook(lambda _, given, level=level: observed.setdefault(level, []).append(given[0]))
    model.encode_pairs(batch)
    assert observed.keys() == {"entity", "action", "relationship"}
    for level, calls in observed.items():
        (both,) = calls  # one call, hence one update of the running statistics
        assert len(both) == 8  # four videos and four captions
        (norm,) = model.attributes[level].norm.values()
        assert norm.num_batches_tracked == 1
        assert torch.allclose(norm.running_mean, 0.1 * both.mean(0), atol=1e-6)
        assert torch.allclose(norm.running_var, 0.9 + 0.1 * both.var(0), atol=1e-6)
    apart = build("mcsan", attribute_norm="separate").train()
    apart.encode_pairs(batch)
    for classify in apart.attributes.values():
        assert {side: int(norm.num_batches_tracked) for side, norm in classify.norm.items()} == {"video": 1, "text": 1}


def test_shared_statistics_separate_sides_that_differ_by_a_constant() -> None:
    """Separate statistics would remove the difference of the sides in training, and evaluation would restore it."""
    classify = next(iter(build("mcsan").attributes.values())).train()
    videos = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    chances = classify({"video": videos, "text": videos + 1})
    assert (chances["video"] - chances["text"]).mean(0).abs().max() > 0.05
    for _ in range(100):  # until the running statistics have converged
        classify({"video": videos, "text": videos + 1})
    alone = {side: classify.eval()({side: x})[side] for side, x in (("video", videos), ("text", videos + 1))}
    for side, chance in alone.items():
        assert torch.allclose(chance, chances[side], atol=0.01)


def test_concepts_of_a_caption_are_base_forms() -> None:
    caption = "the men are cutting two red onions"
    actual = concepts_of(caption, role_graph(caption))
    assert actual == {"entity": {"man", "onion"}, "action": {"cut"}, "relation": {"cut man", "cut onion"}}


def test_concepts_of_other_captions_of_the_clip_are_masked() -> None:
    captions = ["a dog runs", "a dog jumps", "a cat runs", "a cat jumps"]
    graphs = {caption: role_graph(caption) for caption in captions}
    known = Concepts.of(captions, graphs, {"entity": 9, "action": 9, "relation": 9})
    assert known.names["entity"] == ["dog", "cat"]
    made = known.labels([("a dog runs", ["a dog runs", "a dog jumps"])])
    run, jump = known.names["action"].index("run"), known.names["action"].index("jump")
    assert made["action"]["truth"][0, run] == 1
    assert made["action"]["truth"][0, jump] == 0
    assert made["action"]["mask"][0].tolist() == [1.0 if place == run else 0.0 for place in range(2)]
    assert made["entity"]["mask"].tolist() == [[1.0, 1.0]]
    assert known.names["relation"] == []  # each pair is in one caption only


def test_a_relationship_is_a_node_joined_to_its_verb_and_argument() -> None:
    caption = "a dog chases a cat"
    graphs = {caption: role_graph(caption)}
    tensors = graph_tensors([caption], graphs, lambda word: 1, relations=3)
    assert tensors["relations"][0].tolist() == [[1, 5, ROLES.index("ARG0")], [1, 6, ROLES.index("ARG1")], [-1, -1, -1]]
    edges = tensors["edges"][0]
    assert edges.shape == (14, 14)
    assert edges[11].nonzero().flatten().tolist() == [1, 5]
    assert edges[:, 12].nonzero().flatten().tolist() == [1, 6]
    assert not edges[13].any()
    triple = graph_tensors([caption], graphs, lambda word: 1, relations=3, triples=True)
    assert triple["relations"][0].tolist() == [[1, 5, 6], [-1, -1, -1], [-1, -1, -1]]
    assert triple["edges"][0, 11].nonzero().flatten().tolist() == [1, 5, 6]


def test_concepts_agree_with_themselves() -> None:
    model = build("mcsan").eval()
    chance = torch.rand(3, 5)
    same = {f"{level} concepts": chance for level in model.attributes}
    agree = model.attribute_score(same, same)
    assert torch.allclose(agree.diagonal(), torch.ones(3))
    assert (agree <= 1 + 1e-6).all()
