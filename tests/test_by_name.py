"""Choices of `amex train amenet` without options: schedule, scaling, words, hubs, batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import amex, write_lines
from hypothesis import given, settings
from hypothesis import strategies as st

from amex.train.batches import EpochSampler, PairBatches, SimilarCaptions
from amex.train.checkpoint import load_checkpoint
from amex.train.config import Config, load_config
from amex.train.models import build_model
from amex.train.models.layers import Standardize
from amex.train.options import AMENet, Inputs
from amex.train.schedule import STEPS, resolve_auto

NUMBERS = {"data": ("batch_size", "similar"), "train": ("epochs", "lr", "warmup", "val_every")}


@settings(deadline=None, max_examples=60)
@given(clips=st.integers(2, 500_000), captions=st.integers(1, 20), one=st.booleans(), to_choose=st.integers(1, 3000))
def test_a_schedule_follows_the_size_of_the_set(clips: int, captions: int, one: bool, to_choose: int) -> None:
    pairs = clips * captions
    settled, line = resolve_auto(
        load_config("amenet"), pairs=pairs, an_epoch=clips if one else pairs, to_choose=to_choose
    )
    assert f"{pairs:,} training pairs" in line
    assert 32 <= settled.data.batch_size <= 256
    assert 0 < settled.train.lr <= 1e-3
    shown = settled.train.epochs * (clips if one else pairs)
    assert shown >= 15 * pairs
    # Apart from the last epoch, only sets of a few batches are shown more often.
    assert shown < 15 * pairs + max(pairs, 60 * settled.data.batch_size) * 2
    assert settled.train.keep == ("best" if to_choose >= 100 else "last")
    Config.model_validate(settled.to_json())  # as stored in a checkpoint


@pytest.mark.parametrize(("pairs", "batches"), [(2, 1), (64, 1), (65, 1), (66, 2), (128, 2), (129, 2)])
def test_few_pairs_get_the_minimum_steps_even_with_a_remaining_pair(pairs: int, batches: int) -> None:
    config = load_config("hgr", ["data.batch_size=64", "train.epochs=auto"])
    settled, _ = resolve_auto(config, pairs=pairs, an_epoch=pairs, to_choose=5)
    assert len(PairBatches(range(pairs), 64, False)) == batches
    assert settled.train.epochs * batches >= STEPS


def test_user_values_and_other_models_defaults_are_kept() -> None:
    given_all = [f"data.{key}=2" for key in NUMBERS["data"]] + [f"train.{key}=3" for key in NUMBERS["train"]]
    config = load_config("amenet", [*given_all, "train.keep=best"])
    assert resolve_auto(config, pairs=100, an_epoch=100, to_choose=5) == (config, "")
    hgr = load_config("hgr")
    assert (hgr.data.batch_size, hgr.data.similar, hgr.train.lr, hgr.train.keep) == (64, 0, 2e-4, "best")


@pytest.mark.parametrize(
    ("rows", "opens"),
    [
        (torch.rand(500, 8) ** 6, True),  # detector scores: most near 0, some near 1
        (torch.rand(500, 8), False),
        (torch.nn.functional.normalize(torch.randn(500, 64).relu(), dim=1), False),
        (torch.randn(500, 8), False),
    ],
    ids=["detections", "between 0 and 1", "of length 1", "any"],
)
def test_probabilities_are_detected_and_read_as_log_odds(rows: torch.Tensor, opens: bool) -> None:
    scale = Standardize("s", rows.shape[1], logit=None)
    scale.set(rows)
    assert scale.opens is opens
    told = Standardize("s", rows.shape[1], logit=opens)
    told.set(rows)
    assert torch.equal(scale(rows), told(rows))
    again = Standardize("s", rows.shape[1], logit=None)
    again.load_state_dict(scale.state_dict())
    assert torch.equal(again(rows), told(rows))


def spaces(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(
        AMENet(relation_branch=False, streams=["clips"], dim=8, hidden=16, text_bag=False, **options),
        Inputs(widths={"clips": 5, "text": 6}),
    ).eval()


def sides(count: int, seed: int) -> tuple[dict, dict]:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.ones(count, 2, dtype=torch.bool)
    video = {"clips": {"values": torch.randn(count, 2, 5, generator=rng), "mask": mask}}
    return video, {"values": torch.randn(count, 2, 6, generator=rng), "mask": mask}


@pytest.mark.parametrize("known", [3, 40])
def test_a_score_is_a_dot_product_minus_the_mean_of_nearest_training_scores(known: int) -> None:
    model = spaces(hubs=10)
    video, text = sides(known, 1)
    model.allocate_neighbours(known, known)
    model.store_neighbours(model.encode_videos(video), model.encode_texts(text))
    observed = model.encode_videos(video)["global"], model.encode_texts(text)["global"]
    video, text = sides(6, 2)
    videos, texts = model.encode_videos(video), model.encode_texts(text)
    cosines = texts["global"] @ videos["global"].T
    near = min(10, known)
    of_text = (texts["global"] @ observed[0].T).topk(near, dim=1).values.mean(1, keepdim=True)
    of_video = (observed[1] @ videos["global"].T).topk(near, dim=0).values.mean(0, keepdim=True)
    assert torch.allclose(model.score(videos, texts), cosines - of_text / 2 - of_video / 2, atol=1e-6)
    assert torch.allclose(model.score(videos, texts), model.flatten(texts) @ model.flatten(videos).T)
    # A new model allocates as many neighbours as the checkpoint stored.
    again = spaces(hubs=10)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.score(again.encode_videos(video), again.encode_texts(text)), model.score(videos, texts))
    # In training, a score uses only the spaces.
    model.train()
    assert set(model.encode_videos(video)) == set(model.encode_texts(text)) == {"global"}


@settings(deadline=None, max_examples=30)
@given(
    captions=st.lists(st.lists(st.sampled_from("abcdefg"), max_size=4).map(" ".join), min_size=2, max_size=60),
    most=st.integers(2, 9),
    epoch=st.integers(0, 3),
)
def test_similar_captions_share_a_batch_and_every_pair_occurs_once(captions: list[str], most: int, epoch: int) -> None:
    split = SimpleNamespace(captions=captions, pair=lambda epoch, index: (index, index))
    sampler = EpochSampler(np.arange(len(captions))[:, None], 0, arrange=SimilarCaptions(split, most))
    sampler.set_epoch(epoch)
    order = [index for _, index in sampler]
    assert sorted(order) == list(range(len(captions)))
    assert order == [index for _, index in sampler]


def test_of_many_captions_those_with_the_same_words_share_a_batch() -> None:
    captions = [f"{a} {verb} {b}" for a, b in ("xy", "yx", "pq", "qp", "mn", "nm") for verb in ("sees", "hits")]
    split = SimpleNamespace(captions=captions, pair=lambda epoch, index: (index, index))
    sampler = EpochSampler(np.arange(len(captions))[:, None], 0, arrange=SimilarCaptions(split, 2))
    order = [index for _, index in sampler]
    for first, second in zip(order[::2], order[1::2], strict=True):
        assert sorted(captions[first].split()) == sorted(captions[second].split())


def test_a_store_of_one_row_a_clip_without_boxes_or_text_trains_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = ("dog", "cat", "horse", "car", "boat", "bird")
    held_out = rng.integers(len(kinds), size=60)
    chances = np.where(np.eye(len(kinds))[held_out] > 0, 0.99, 0.01) * rng.uniform(0.9, 1, (60, len(kinds)))
    np.save(tmp_path / "scores.npy", chances.astype(np.float32))
    lines = [
        {
            "clip_id": f"c{i}",
            "video": f"c{i}.mp4",
            "split": ("train", "val", "test")[i % 3],
            "captions": [f"a {kinds[k]}"],
        }
        for i, k in enumerate(held_out)
    ]
    manifest, store, work = write_lines(tmp_path / "m.jsonl", *lines), tmp_path / "s.zarr", tmp_path / "w"
    done = amex("features", "import", tmp_path / "scores.npy", "--captions", manifest, "--store", store)
    assert done.exit_code == 0, done.output
    done = amex("train", "amenet", "--store", store, "--manifest", manifest, "--work-dir", work)
    assert done.exit_code == 0, done.output
    for said in ("the relation branch is disabled", "words are learned", "20 training pairs", "log-odds", "last"):
        assert said in done.output
    model = load_checkpoint(work).model()
    assert len(model.known_videos) == 20
    assert len(model.known_texts) == len(set(held_out[::3]))
    done = amex("eval", work, "--split", "test", "--merge", "--json")
    assert done.exit_code == 0, done.output
