"""HGR equals its official program on the same files (tests/data/hgr), also in edge cases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import amex

from amex.train.losses import hinge
from amex.train.models.hgr import HGR
from amex.train.official_hgr import score_official
from amex.train.options import HGR as Options
from amex.train.options import Inputs
from amex.train.rolegraphs import ROLES, GraphError, graph_tensors, role_number

INPUTS = Inputs(widths={"frames": 12, "text": 8}, words=20)
OFFICIAL = Path(__file__).parent / "data" / "hgr"
NUMBERS = {"a": 3, "dog": 4, "bites": 5, "man": 6}


def number(word: str) -> int:
    return NUMBERS.get(word, 2)


def test_an_official_checkpoint_gives_the_official_scores_and_loss(tmp_path: Path) -> None:
    run = amex("eval", "--official-hgr", OFFICIAL, "--scores", tmp_path / "out.npz", "--json")
    assert run.exit_code == 0, run.output
    ours, theirs = np.load(tmp_path / "out.npz"), np.load(OFFICIAL / "scores.npz")
    rows = [list(ours["videos"]).index(video) for video in theirs["videos"]]
    columns = [list(ours["captions"]).index(caption) for caption in theirs["captions"]]
    actual = {level: ours[level][np.ix_(rows, columns)] for level in ("sent", "verb", "noun")}
    for level, scores in actual.items():
        assert theirs[level].std() > 0.01
        assert np.abs(scores - theirs[level]).max() < 1e-4 * np.abs(theirs[level]).max(), level
    fused = torch.from_numpy(np.mean(list(actual.values()), axis=0))
    own = torch.eye(9, dtype=torch.bool)
    expected = json.loads((OFFICIAL / "loss.json").read_text())["loss_bi_hard_margin0.2_on_fused_first9"]
    assert hinge(fused[:, :9], own, ~own, margin=0.2, which="hardest").item() == pytest.approx(expected, rel=1e-4)
    record = json.loads(run.stdout)
    assert record["text_to_video"]["queries"] == 27
    assert record["video_to_text"]["queries"] == 9


def graph(*nodes: tuple[str, list[int]], edges: tuple[tuple[str, str], ...] = ()) -> list[Any]:
    named = {str(n): {"role": role, "spans": spans, "words": []} for n, (role, spans) in enumerate(nodes, start=1)}
    return [{"ROOT": {"role": "ROOT", "spans": [0], "words": []}} | named, [[a, b, "x"] for a, b in edges]]


def test_a_graph_becomes_nodes_roles_and_edges() -> None:
    parsed = graph(("ARG0", [0, 1]), ("V", [2]), ("ARG1", [3, 4]), edges=(("2", "1"), ("2", "3")))
    tensors = graph_tensors(["a dog bites a cat"], {"a dog bites a cat": parsed}, number)
    assert tensors["ids"].tolist() == [[3, 4, 5, 3, 2]]
    assert tensors["nodes"].shape == (1, 11, 5)
    places = {place: tensors["nodes"][0, place].nonzero().flatten().tolist() for place in (0, 1, 5, 6)}
    assert places == {0: [0, 1, 2, 3, 4], 1: [2], 5: [0, 1], 6: [3, 4]}
    assert tensors["nodes"].sum() == 10
    assert tensors["roles"][0].tolist() == [0, 0, 0, 0, ROLES.index("ARG0"), ROLES.index("ARG1"), 0, 0, 0, 0]
    # Edges lead to the row from the column: a verb receives from the caption and its arguments, they receive from it.
    assert tensors["edges"][0].nonzero().tolist() == [[1, 0], [1, 5], [1, 6], [5, 1], [6, 1]]


def test_phrases_beyond_the_limits_are_dropped() -> None:
    caption = " ".join(f"w{n}" for n in range(40))
    many = [("V", [n]) for n in range(6)] + [("ARG1", [n, 35]) for n in range(8)] + [("ARG2", [32])]
    tensors = graph_tensors([caption], {caption: graph(*many, edges=(("5", "7"), ("1", "7"), ("1", "14")))}, number)
    assert tensors["ids"].shape == (1, 30)
    assert tensors["nodes"][0].any(-1).all()  # the limits are four verbs and six nouns
    assert tensors["nodes"][0, 5].sum() == 1  # the word at 35 is cut off
    assert tensors["edges"][0].nonzero().tolist() == [[1, 0], [1, 5], [2, 0], [3, 0], [4, 0], [5, 1]]


def test_roles_of_other_forms_have_a_number() -> None:
    assert role_number("C-ARG1") == role_number("R-ARG1") == role_number("ARG1") == 1
    assert role_number("ARGM-CAU") == role_number("NOUN") == role_number("") == 15


@pytest.fixture
def model() -> HGR:
    torch.manual_seed(0)
    return HGR(Options(dim=16, word_dim=8, streams=["frames"]), INPUTS).eval()


def frames(*lengths: int, pad: int = 0) -> dict[str, dict[str, torch.Tensor]]:
    longest = max(lengths) + pad
    values = torch.full((len(lengths), longest, 12), 1e3)
    mask = torch.zeros(len(lengths), longest, dtype=torch.bool)
    for index, length in enumerate(lengths):
        values[index, :length] = torch.randn(length, 12, generator=torch.Generator().manual_seed(index))
        mask[index, :length] = True
    return {"frames": {"values": values, "mask": mask}}


@pytest.mark.parametrize("fusion", ["embed", "sim"])
def test_captions_without_verbs_score_zero_on_that_level_and_padding_never_counts(fusion: Any) -> None:
    torch.manual_seed(0)
    model = HGR(Options(dim=16, word_dim=8, fusion=fusion, streams=["frames"]), INPUTS).eval()
    graphs = {"a dog": graph(("NOUN", [1])), "a dog bites a man": graph(("V", [2]), ("ARG1", [4]), edges=(("1", "2"),))}
    texts = model.encode_texts(graph_tensors(list(graphs), graphs, number))
    alone = model.encode_texts(graph_tensors(["a dog"], graphs, number))  # three words shorter
    scores = model.level_scores(model.encode_videos(frames(3, 5)), texts)
    assert (scores["verb"][0] == 0).all()
    assert (scores["verb"][1] != 0).all()
    assert all(found.isfinite().all() for found in scores.values())
    padded = model.level_scores(model.encode_videos(frames(3, 5, pad=4)), texts)
    fewer = model.level_scores(model.encode_videos(frames(3, 5)), alone)
    for level, found in scores.items():
        assert torch.allclose(found, padded[level], atol=1e-6)
        assert torch.allclose(found[:1], fewer[level], atol=1e-6)


def test_phrases_and_roles_receive_gradients(model: HGR) -> None:
    graphs = {
        f"{word} bites a man": graph(("ARG0", [0]), ("V", [1]), ("ARG1", [3]), edges=(("2", "1"), ("2", "3")))
        for word in ("a", "dog", "man", "cat")
    }
    each = torch.arange(4)
    made = {
        "video": frames(3, 4, 5, 6),
        "text": graph_tensors(list(graphs), graphs, number),
    }
    model.train()
    scores = model.score(*model.encode_pairs(made))
    torch.nn.functional.cross_entropy(20 * scores, each).backward()
    for name, parameter in model.named_parameters():
        # These biases shift a whole softmax.
        if name not in ("frame_attention.bias", "text.attention.bias", "text.layers.0.key.bias"):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def spoiled(folder: Path, name: str) -> Path:
    shutil.copytree(OFFICIAL, folder)
    path = folder / name
    match name:
        case "tst_ft.hdf5" | "tst_names.npy":
            path.write_bytes(path.read_bytes()[:50])
        case "word2int.json":
            path.unlink()
        case "checkpoint.th":
            record = torch.load(path, weights_only=True)
            record["text_encoder"]["another.weight"] = torch.zeros(1)
            torch.save(record, path)
        case "model.json":
            settings = json.loads(path.read_text())
            settings["subcfgs"]["video_encoder"]["share_enc"] = True
            path.write_text(json.dumps(settings))
        case "sent2rolegraph.augment.json":
            graphs = json.loads(path.read_text())
            path.write_text(json.dumps(dict(list(graphs.items())[1:])))
        case "ref_captions.json":
            path.write_text("{")
    return folder


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("word2int.json", "lacks word2int.json"),
        ("tst_ft.hdf5", "tst_ft.hdf5 is not HDF5"),
        ("tst_names.npy", "tst_names.npy is not an array of names"),
        ("checkpoint.th", "checkpoint.th is not a checkpoint"),
        ("model.json", "video_encoder.share_enc=True (needs False)"),
        ("sent2rolegraph.augment.json", "has no role graph"),
        ("ref_captions.json", "ref_captions.json is not JSON"),
    ],
)
def test_an_incomplete_folder_is_refused_by_file(name: str, words: str, tmp_path: Path) -> None:
    run = amex("eval", "--official-hgr", spoiled(tmp_path / "hgr", name))
    assert run.exit_code == 1
    assert words in run.output
    assert len(run.output.strip().splitlines()) == 1


def test_an_invalid_graph_names_its_caption(tmp_path: Path) -> None:
    folder = tmp_path / "hgr"
    shutil.copytree(OFFICIAL, folder)
    path = folder / "sent2rolegraph.augment.json"
    graphs = json.loads(path.read_text())
    caption = next(iter(graphs))
    path.write_text(json.dumps(graphs | {caption: [{"1": {"role": "V"}}, []]}))
    with pytest.raises(GraphError, match=r"an invalid role graph for .*: a node needs words"):
        score_official(folder)


def test_a_checkpoint_or_an_official_folder_but_not_both(tmp_path: Path) -> None:
    assert amex("eval").exit_code == 2
    (tmp_path / "best.pth").touch()
    assert amex("eval", tmp_path, "--official-hgr", OFFICIAL).exit_code == 2
