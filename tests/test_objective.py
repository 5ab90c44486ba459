"""The objective: which pairs match, the value of each term, and that a term only adds its gradient."""

from __future__ import annotations

import contextlib
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ON_CPU
from hypothesis import given
from hypothesis import strategies as st
from test_all_models import CASES, learner, make
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, cross_entropy, normalize

from amex.train.adversary import Adversary
from amex.train.config import ConfigError, check_config
from amex.train.fitting import make_optimizer
from amex.train.losses import contrastive, divergence, focal, hinge, mean_average_precision, mine
from amex.train.objective import pair_matrix
from amex.train.options import ObjectiveOptions

RELATIONS = ["positive", "excused", "negative"]
# Each term alone, as a setting of the section.
TERMS: dict[str, dict[str, Any]] = {
    "hinge": {"hinge": 1, "margin": 2.0},
    "hinge, mined": {"hinge": {"levels": 1}, "negatives": 2, "margin": 2.0},
    "contrastive": {"contrastive": {"fused": 1, "levels": 0.5}},
    "divergence": {"divergence": 1.0},
    "concepts": {"concepts": 1.0},
    "denoising": {"denoise": "or"},
    "reversal": {"adversary": "reversal"},
    "alternating": {"adversary": "alternating"},
    "wasserstein": {"adversary": "wasserstein"},
}


@given(st.integers(2, 7), st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 3))
def test_the_hinge_equals_a_plain_loop(size: int, seed: int, margin: float, most: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.uniform(-1, 1, (size, size))
    kinds = rng.integers(0, 3, (size, size))  # positive, excused, negative
    np.fill_diagonal(kinds, 0)
    sums: dict[Any, list[list[float]]] = {"hardest": [[], []], "all": [[], []], most: [[], []]}
    for i, j in zip(*np.nonzero(kinds == 0), strict=True):
        rows = [max(0.0, margin + scores[i, k] - scores[i, j]) for k in range(size) if kinds[i, k] == 2]
        columns = [max(0.0, margin + scores[k, j] - scores[i, j]) for k in range(size) if kinds[k, j] == 2]
        for way, costs in enumerate((rows, columns)):
            sums["hardest"][way].append(max(costs, default=0))
            sums["all"][way].append(sum(costs))
            few = sorted(costs, reverse=True)[:most]
            sums[most][way].append(sum(few) / min(most, size))
    for which, ways in sums.items():
        loss = hinge(
            torch.from_numpy(scores),
            torch.from_numpy(kinds == 0),
            torch.from_numpy(kinds == 2),
            margin=margin,
            which=which,
        )
        assert loss.item() == pytest.approx(sum(np.mean(way) for way in ways))


@pytest.mark.parametrize("several", ["mean", "sum"])
def test_the_cross_entropy_with_one_positive_equals_that_of_clip(several: str) -> None:
    logits, own = torch.randn(5, 5), torch.eye(5).bool()
    truth = torch.arange(5)
    expected = (cross_entropy(logits, truth) + cross_entropy(logits.T, truth)) / 2
    assert torch.allclose(contrastive(logits, own, ~own, several=several), expected)


def test_positives_attract_and_excused_pairs_have_no_gradient() -> None:
    logits = torch.zeros(3, 3, requires_grad=True)
    own, pair = torch.eye(3).bool(), torch.zeros(3, 3).bool()
    pair[0, 1] = pair[1, 0] = True
    (drawn,) = torch.autograd.grad(contrastive(logits, own | pair, ~(own | pair), several="mean"), logits)
    assert drawn[0, 1] < 0 < drawn[0, 2]
    (left,) = torch.autograd.grad(contrastive(logits, own, ~(own | pair), several="mean"), logits)
    assert left[0, 1] == 0 < left[0, 2]


@given(st.integers(0, 10**6), st.sampled_from(RELATIONS), st.sampled_from(RELATIONS))
def test_pairs_are_related_by_clip_and_by_caption(seed: int, same_clip: Any, same_caption: Any) -> None:
    rng = np.random.default_rng(seed)
    captions_of = [set(rng.choice(6, rng.integers(1, 4), replace=False).tolist()) for _ in range(4)]
    pairs = [(clip, int(rng.choice(sorted(captions_of[clip])))) for clip in rng.integers(0, 4, 6)]
    own = np.full((6, 3), -1)
    for row, (clip, _) in zip(own, pairs, strict=True):
        row[: len(captions_of[clip])] = sorted(captions_of[clip])
    clip, caption = torch.tensor(pairs).T
    positives, negatives = pair_matrix(
        {"clip": clip, "caption": caption, "own": torch.from_numpy(own)}, same_clip, same_caption
    )
    for i, (mine_, said) in enumerate(pairs):
        for j, (other, _) in enumerate(pairs):
            relation = "negative"
            if i == j:
                relation = "positive"
            elif mine_ == other:
                relation = same_clip
            elif said in captions_of[other]:  # even if the batch contains another caption of that clip
                relation = same_caption
            assert (bool(positives[i, j]), bool(negatives[i, j])) == (relation == "positive", relation == "negative")


def labels(seed: int, shape: tuple[int, int] = (4, 6)) -> tuple[Tensor, Tensor, Tensor]:
    chance = torch.Generator().manual_seed(seed)
    truth = (torch.rand(shape, generator=chance) < 0.3).float()
    mask = (torch.rand(shape, generator=chance) < 0.7).float()
    return torch.rand(shape, generator=chance) * 0.98 + 0.01, truth, mask


@given(st.integers(0, 10_000))
def test_the_focal_loss_without_focus_is_half_the_cross_entropy(seed: int) -> None:
    actual, truth, _ = labels(seed)
    plain = binary_cross_entropy(actual, truth).item()
    loss = focal(actual, truth, torch.ones_like(truth), focus=0.0, balance=0.5)
    assert loss.item() == pytest.approx(plain / 2, rel=1e-5)


@given(st.integers(0, 10_000), st.floats(0, 4), st.floats(0.1, 0.9))
def test_masked_concepts_are_ignored(seed: int, focus: float, balance: float) -> None:
    actual, truth, mask = labels(seed)
    other = torch.where(mask > 0, actual, 1 - actual)
    flipped = torch.where(mask > 0, truth, 1 - truth)
    how = {"focus": focus, "balance": balance}
    assert focal(actual, truth, mask, **how) == focal(other, flipped, mask, **how)
    before, after = (mean_average_precision(*given, mask) for given in ((actual, truth), (other, flipped)))
    assert before == after or (before.isnan() and after.isnan())


def test_focus_reduces_the_weight_of_confident_predictions() -> None:
    truth, mask = torch.ones(1, 1), torch.ones(1, 1)
    sure, unsure = (
        focal(torch.tensor([[p]]), truth, mask, focus=2.0, balance=0.5)
        / focal(torch.tensor([[p]]), truth, mask, focus=0.0, balance=0.5)
        for p in (0.95, 0.1)
    )
    assert sure < 0.01
    assert unsure > 0.8


def test_mean_average_precision_follows_its_definition() -> None:
    chance = torch.tensor([[0.9, 0.1], [0.8, 0.9], [0.7, 0.5], [0.6, 0.2]])
    truth = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])  # no row has the second
    assert mean_average_precision(chance, truth, torch.ones(4, 2)).item() == pytest.approx((1 + 2 / 3) / 2)
    mask = torch.ones(4, 2)
    mask[1, 0] = 0
    assert mean_average_precision(chance, truth, mask).item() == 1.0


def test_the_divergence_of_equal_sides_or_empty_texts_is_zero() -> None:
    texts = torch.randn(4, 6)
    assert divergence(texts, texts, symmetric=True).item() == pytest.approx(0, abs=1e-6)
    others = texts.roll(1, 0)
    apart = divergence(others, texts, symmetric=True)
    assert apart > 0.1
    silent = torch.cat([texts, torch.zeros(4, 6)])
    assert divergence(torch.cat([others] * 2), silent, symmetric=True) == apart
    assert divergence(others, texts, symmetric=False) != apart


def unit_rows(*rows: list[float]) -> Tensor:
    return normalize(torch.tensor(rows, dtype=torch.float32), dim=-1)


def test_equal_draws_mine_only_identical_videos() -> None:
    views = unit_rows([1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [1, 0, 0])
    assert mine(views, views, "or").nonzero().tolist() == [[0, 3], [3, 0]]


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_a_duplicate_video_is_always_mined(a: float, b: float) -> None:
    first, second = unit_rows([1, a], [1, a], [-5, 1]), unit_rows([1, b], [1, b], [-5, 1.1])
    assert mine(first, second, "and")[0, 1]


def test_or_mines_pairs_found_by_either_side_and_and_pairs_found_by_both() -> None:
    # The first video's draws are far apart, so it mines the second, but not the reverse.
    first, second = unit_rows([1, 0.8], [1, 0]), unit_rows([1, -0.8], [1, 0.01])
    assert mine(first, second, "or").nonzero().tolist() == [[0, 1], [1, 0]]
    assert not mine(first, second, "and").any()


def test_slack_mines_more_pairs() -> None:
    views = unit_rows([1, 0, 0], [0.95, 0.3, 0], [0, 0, 1])
    assert not mine(views, views, "or").any()
    assert mine(views, views, "or", 0.1).nonzero().tolist() == [[0, 1], [1, 0]]
    torch.manual_seed(0)
    first, second = (normalize(torch.randn(30, 4), dim=-1) for _ in range(2))
    counts = [int(mine(first, second, "or", slack).sum()) for slack in (0.0, 0.1, 0.5, 0.9)]
    assert counts == sorted(counts)


# One case for each model and a few more; other cases differ only inside the model.
MODELS = ["amenet", "hgr", "mcsan, objects", "hcmi", "dual encoding"]


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("case", MODELS)
def test_every_term_works_with_every_model_and_gives_gradients(case: str, term: str) -> None:
    batch = make(case, size=6)
    given = {"contrastive": 1, "divergence": 0, "concepts": 0, "denoise": "off"} | TERMS[term]
    trained = learner(case, **given)
    trained.progress = 0.5
    once = {name: value for name, value in batch.items() if name != "second"}
    bare = {"contrastive": 1, "divergence": 0, "concepts": 0, "denoise": "off"}
    plain = set() if {"hinge", "contrastive"} & TERMS[term].keys() else set(learner(case, **bare)(once))
    terms = trained(batch if term == "denoising" else once)
    own = {name: value for name, value in terms.items() if name not in plain}
    assert own, terms.keys()
    assert all(torch.isfinite(value) for name, value in terms.items() if "mAP" not in name), terms
    losses = [value for name, value in own.items() if name.startswith("loss")]
    if term != "denoising":  # it changes the positives, and has no term of its own
        sum(losses).backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained.model.parameters())


def test_denoising_that_mines_nothing_changes_nothing() -> None:
    """If nothing is mined, a step with denoising equals the step without, bit for bit."""
    after = []
    for denoise in ("off", "and"):
        trained = learner("hcmi", dropout=0.3, denoise=denoise)
        batch = make("hcmi", size=6)
        if denoise == "off":
            del batch["second"]
        else:
            batch["second"] = batch["video"]  # equal draws mine only themselves
        optimizer = make_optimizer(config("hcmi"), trained, on_gpu=False)
        torch.manual_seed(1)
        logged = trained.train().train_step(batch, optimizer)
        after.append((trained.state_dict(), torch.get_rng_state(), logged.get("mined", 0)))
    (plain, chance, _), (denoised, same_chance, mined) = after
    assert mined == 0
    assert torch.equal(chance, same_chance)
    assert all(torch.equal(x, denoised[name]) for name, x in plain.items())


def config(case: str, **more: Any) -> Any:
    return check_config({"model": CASES[case], "train": {"lr": 0.01} | more}, case)


@pytest.mark.parametrize("case", ["amenet", "hgr", "hcmi"])
def test_cached_gradients_equal_those_of_the_whole_batch(case: str) -> None:
    gradients = []
    for at_once in (0, 4, 5):
        trained = learner(case, encode_at_once=at_once, denoise="off")
        batch = make(case, size=9)
        del batch["second"]
        optimizer = make_optimizer(config(case), trained, on_gpu=False)
        optimizer.step = lambda **_: None
        optimizer.zero_grad = lambda **_: None
        trained.train().train_step(batch, optimizer)
        gradients.append({name: p.grad for name, p in trained.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        assert all(torch.allclose(x, other[name], atol=1e-5) for name, x in gradients[0].items())


def test_cached_gradients_use_the_dropout_of_the_first_encoding() -> None:
    trained = learner("hgr", dropout=0.5, encode_at_once=3).train()
    pairs = make("hgr", size=6)
    observed = []
    encode = trained.model.encode_pairs

    def recorded(batch: dict[str, Any]) -> Any:
        observed.append(encode(batch))
        return observed[-1]

    trained.model.encode_pairs = recorded
    trained.train_step(
        {k: v for k, v in pairs.items() if k != "second"}, make_optimizer(config("hgr"), trained, on_gpu=False)
    )
    assert len(observed) == 4
    for first, again in zip(observed[:2], observed[2:], strict=True):
        for before, after in zip(first, again, strict=True):
            assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert not torch.equal(observed[0][0]["verb"], observed[1][0]["verb"])


@pytest.mark.parametrize("case", ["dual encoding", "mcsan, projections apart"])
def test_a_remaining_pair_is_encoded_with_others_for_batch_normalisation(case: str) -> None:
    trained, batch = learner(case, encode_at_once=4, denoise="off"), make(case, size=9)
    del batch["second"]
    logged = trained.train().train_step(batch, make_optimizer(config(case), trained, on_gpu=False))
    assert torch.isfinite(logged["loss"])


def test_encoding_without_gradients_uses_a_separate_autocast_context() -> None:
    """Older versions of torch keep weights that were cast without gradients for the rest of a context."""
    trained = learner("hcmi", denoise="or").train()
    optimizer = make_optimizer(config("hcmi"), trained, on_gpu=False)
    contexts, used = iter(range(9)), {}
    entered, encode = optimizer.optim_context, trained.model.encode_videos

    @contextlib.contextmanager
    def context(model: Any) -> Any:
        trained.context = next(contexts)
        with entered(model):
            yield

    def recorded(video: Any) -> Any:
        used[torch.is_grad_enabled()] = trained.context
        return encode(video)

    optimizer.optim_context, trained.model.encode_videos = context, recorded
    trained.train_step(make("hcmi", size=6), optimizer)
    assert used.keys() == {True, False}
    assert used[True] != used[False]


def test_gradients_of_several_batches_are_accumulated() -> None:
    trained = learner("dual encoding")
    optimizer = make_optimizer(config("dual encoding", accumulate=2), trained, on_gpu=False)
    optimizer.initialize_count_status(trained, 0, 4)
    before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    steps = []
    for _ in range(4):
        trained.train().train_step(make("dual encoding", size=6), optimizer)
        changed = any(not torch.equal(p, before[name]) for name, p in trained.named_parameters())
        steps.append(changed)
        before = {name: p.detach().clone() for name, p in trained.named_parameters()}
    assert steps == [False, True, False, True]


def test_a_score_that_the_model_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(
        ConfigError, match=r"objective\.hinge: this model has no score 'relation'; it has fused, levels"
    ):
        learner("hgr", hinge={"relation": 1})
    with pytest.raises(ConfigError, match="no term ranks"):
        learner("hgr", hinge=0)


def test_setting_hinge_or_contrastive_replaces_the_models_defaults() -> None:
    def of(**given: Any) -> Any:
        return check_config({"model": {"name": "hcmi"}, "objective": given}, "x").objective

    assert (of().hinge, of().contrastive, of().denoise) == ({"video_sentence": 0.5}, {"levels": 3.0}, "or")
    assert (of(hinge=1).hinge, of(hinge=1).contrastive, of(hinge=1).denoise) == ({"fused": 1}, {}, "or")
    with pytest.raises(ConfigError, match="must be at least 1"):
        of(negatives=0)


def spaces(seed: int, size: int = 64) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    videos = torch.randn(size, 8, generator=generator) + 1
    texts = torch.randn(size, 8, generator=generator) - 1
    return {"relation": videos.requires_grad_()}, {"relation": texts.requires_grad_()}


def adversary(mode: str, weight: float) -> Adversary:
    torch.manual_seed(0)
    options = ObjectiveOptions(adversary=mode, adversary_weight=weight, adversary_hidden=8)
    return Adversary({"relation": 8}, options)


def test_reversal_trains_discriminator_and_encoders_in_opposite_directions() -> None:
    reversing, plain = adversary("reversal", 0.3), adversary("reversal", 0.3)
    videos, texts = spaces(0)
    reversing(videos, texts, progress=1.0)["loss_adversary"].backward()
    turned, own = videos["relation"].grad.clone(), [p.grad.clone() for p in reversing.parameters()]
    videos, texts = spaces(0)
    plain._entropy(plain._logits(videos), plain._logits(texts)).backward()
    assert torch.allclose(turned, -0.3 * videos["relation"].grad, rtol=1e-3)
    assert all(torch.allclose(a, p.grad) for a, p in zip(own, plain.parameters(), strict=True))
    videos, texts = spaces(0)
    reversing(videos, texts, progress=0.0)["loss_adversary"].backward()
    assert videos["relation"].grad.abs().sum() == 0  # the factor starts at zero


@pytest.mark.parametrize("mode", ["alternating", "wasserstein"])
def test_discriminators_with_own_steps_learn_and_encoders_learn_to_fool_them(mode: str) -> None:
    opponent = adversary(mode, 1.0)
    optimizer = torch.optim.Adam(opponent.parameters(), lr=1e-2)
    accuracy = []
    for step in range(150):
        sides = [{"relation": side["relation"].detach()} for side in spaces(step)]
        opponent.requires_grad_(True)
        optimizer.zero_grad()
        opponent.own_loss(*sides).backward()
        optimizer.step()
        opponent.requires_grad_(False)
        accuracy.append(float(opponent(*sides, progress=0.5)["modality_accuracy"]))
    assert accuracy[-1] > 0.95 > accuracy[0] or mode == "wasserstein"  # its zero is arbitrary
    optimizer.zero_grad()
    videos, texts = spaces(1000)
    opponent(videos, texts, progress=0.5)["loss_adversary"].backward()
    # Along the gradient of the encoders' term, videos move towards the texts, and texts towards the videos.
    towards = (texts["relation"].mean(0) - videos["relation"].mean(0)).detach()
    assert (-videos["relation"].grad.mean(0)) @ towards > 0 > (-texts["relation"].grad.mean(0)) @ towards
    assert all(p.grad is None and not p.requires_grad for p in opponent.parameters())


SPLIT = """
import os, sys, torch
sys.path.insert(0, {tests!r})
from test_all_models import learner, make
from test_objective import config
from amex.train.fitting import make_optimizer

def part(x, rank, world):
    if isinstance(x, dict):
        return {{k: part(v, rank, world) for k, v in x.items()}}
    return x[rank::world]

rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if world > 1:
    torch.distributed.init_process_group("gloo")
found = []
for case, given in {cases!r}:
    trained = learner(case, **given).train()
    trained.progress = 0.5
    made = make(case, size=8)
    made["caption"][5] = made["caption"][2]
    made["own"][5] = made["own"][2]
    if given.get("denoise", "off") == "off":
        del made["second"]
    made = part(made, rank, world)
    if rank and "values" in made["text"]:  # one process's captions are longer than the other's
        made["text"] |= {{"values": torch.nn.functional.pad(made["text"]["values"], (0, 0, 0, 2)),
                         "mask": torch.nn.functional.pad(made["text"]["mask"], (0, 2))}}
    optimizer = make_optimizer(config(case), trained, on_gpu=False)
    kept = {{}}
    named = dict(trained.named_parameters())
    optimizer.step = lambda: kept.update({{n: p.grad.clone() for n, p in named.items() if p.grad is not None}})
    logged = trained.train_step(made, optimizer)
    found.append(({{k: torch.as_tensor(v).detach() for k, v in logged.items()}}, kept))
if rank == 0:
    torch.save(found, sys.argv[1])
if world > 1:
    torch.distributed.barrier()
    os._exit(0)  # the threads of gloo now and then abort an interpreter that is shutting down
"""


@pytest.mark.slow
def test_two_processes_give_the_loss_and_the_gradients_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # MCSAN and Dual Encoding normalise over the clips of a batch, separately in each process.
    cases = [
        ("amenet", {"hinge": {"levels": 1}}),
        ("amenet", {"contrastive": 1, "adversary": "reversal", "encode_at_once": 2}),
        ("hgr", {}),
        ("hcmi", {"denoise": "or"}),
    ]
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
            if name.startswith(("loss_hinge", "loss_contrastive", "mined")):  # other terms use the rows of one process
                assert value.item() == pytest.approx(two[name].item(), rel=1e-4), (case, name)
        assert grads.keys() == shared.keys()
        for name, grad in grads.items():
            assert torch.allclose(grad, shared[name], atol=1e-5), (case, name)
