"""The card of a shared store is correct, its examples run, and edited cards are not overwritten."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import amex, extract
from test_export import objects, text, windows

from amex.extract.encoders import NETWORKS, known_weights
from amex.extract.encoders.objects import SHAPES_DETECTOR
from amex.features import ClipRows, ClipSource, create_store, describe_store, open_store, render_card, write_part
from amex.features.exchange.card import checksum, is_card


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "shared.zarr"
    windows(path), objects(path), text(path)
    return path


def card(store: Path, *more: object) -> str:
    result = amex("features", "card", store, *more)
    assert result.exit_code == 0, result.output
    return (store / "README.md").read_text()


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL)


def test_the_head_is_what_hubs_read(store: Path) -> None:
    readme = card(store)
    head = yaml.safe_load(readme.split("---\n")[1])
    assert head["license"] is None  # for the user to fill in
    assert head["size_categories"] == ["n<1K"]
    assert head["pretty_name"] == "shared.zarr"
    assert "video" in head["tags"]
    assert readme.startswith("---\n")


def test_the_examples_run_and_agree(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    results = []
    for block in blocks(card(store), "python"):
        names: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), names)
        results.append(names)
    ours, plain = results
    assert ours["rows"].values.tobytes() == plain["values"].tobytes()
    assert len(plain["values"])


def test_the_example_clip_has_rows_that_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = windows(tmp_path / "shared.zarr", "float32")
    first = json.loads(amex("features", "card", tmp_path / "shared.zarr", "--json").stdout)["streams"]["windows"][
        "first"
    ]
    arrays = {"values": np.full((1, 8), 7, np.float32), "times": np.zeros((1, 2))}
    again = ClipRows(clip_id=first["clip_id"], arrays=arrays, source=ClipSource(video="v", revision=1))
    write_part(tmp_path / "shared.zarr", "windows", "p9", spec=stream.spec, clips=[again], failures=[], run={})
    test_the_examples_run_and_agree(tmp_path / "shared.zarr", monkeypatch)


def test_the_checksum_can_be_computed_without_amex(store: Path) -> None:
    readme = card(store)
    (command,) = blocks(readme, "sh")
    printed = subprocess.run(command, shell=True, cwd=store, capture_output=True, text=True, check=True).stdout
    mark = printed.split()[0]
    assert f"`{mark}`" in readme
    assert mark == json.loads(amex("features", "card", store, "--json").stdout)["checksum"]


def test_cards_are_equal_only_for_equal_stores(store: Path, tmp_path: Path) -> None:
    first = card(store)
    assert card(store) == first
    shutil.copytree(store, tmp_path / "other" / "shared.zarr")
    assert card(tmp_path / "other" / "shared.zarr") == first
    before = checksum(open_store(store))
    spec = open_store(store)["windows"].spec
    write_part(store, "windows", "p2", spec=spec, clips=[], failures=[], run={})
    assert checksum(open_store(store)) != before


def test_a_part_that_was_replaced_does_not_count(store: Path) -> None:
    spec = open_store(store)["windows"].spec
    write_part(store, "windows", "p2", spec=spec, clips=[], failures=[], run={}, replaces=["p0"])
    replaced = checksum(open_store(store))
    (store / "windows" / "commits" / "p0.json").unlink()
    assert checksum(open_store(store)) == replaced


def test_edited_files_are_not_overwritten(store: Path, tmp_path: Path) -> None:
    readme, path = card(store), store / "README.md"
    path.write_text(readme.replace("license:  #", "license: mit  #"))
    for written in (path.read_text(), "mine\n", readme + "more\n", ""):
        path.write_text(written)
        refused = amex("features", "card", store)
        assert (refused.exit_code, refused.output.count("\n")) == (1, 1)
        assert "written or edited by hand: --force replaces it" in refused.output
        assert path.read_text() == written
    path.write_bytes(b"\xff\xfe")
    assert amex("features", "card", store).exit_code == 1
    assert amex("features", "card", store, "--out", tmp_path / "c.md").exit_code == 0
    assert (tmp_path / "c.md").read_text() == readme
    assert path.read_bytes() == b"\xff\xfe"
    assert card(store, "--force") == readme
    assert is_card(readme)
    path.unlink()
    assert "written" not in amex("features", "card", store, "--json").output
    assert not path.exists()


def test_a_store_with_a_card_is_intact(store: Path) -> None:
    card(store)
    verified = amex("features", "verify", store)
    assert (verified.exit_code, "leftover" in verified.output) == (0, False)


def test_a_card_of_a_damaged_store_is_refused(store: Path) -> None:
    record = store / "windows" / "commits" / "p0.json"
    record.write_bytes(record.read_bytes()[:-9])
    refused = amex("features", "card", store)
    assert (refused.exit_code, "is damaged" in refused.output) == (1, True)
    assert not (store / "README.md").exists()


def test_hostile_names_break_neither_table_nor_examples(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Earlier versions allowed any folder name as the name of a stream."""
    name = "a|b `c` 'd' <b>*\n# e"
    (store / "windows").rename(store / name)
    shutil.rmtree(store / "objects")
    shutil.rmtree(store / "text")
    monkeypatch.chdir(store.parent)
    readme = card(store)
    for block in blocks(readme, "python"):
        exec(compile(block, "README.md", "exec"), {})
    assert "\n# e" not in readme
    rows = [line for line in readme.splitlines() if line.startswith("| ") and "float16" in line]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [8]


def test_long_settings_are_not_shown(store: Path) -> None:
    facts = describe_store(open_store(store))
    facts["streams"]["windows"]["spec"] |= {"model": {"type": "x" * 1000}, "pool": "mean"}
    readme = render_card(facts)
    assert "- model: see `spec.json`\n- pool: `mean`\n" in readme


def test_an_empty_store_has_a_card(tmp_path: Path) -> None:
    create_store(tmp_path / "s.zarr")
    assert "no clips yet" in card(tmp_path / "s.zarr")


def test_a_card_says_how_streams_were_extracted(clips: Path, tmp_path: Path, cluster: str) -> None:
    store = tmp_path / "made.zarr"
    extract(clips, store, cluster, "--stream", "r2plus1d_tiny", "--weights", "r2plus1d_tiny=default")
    readme, facts = card(store), json.loads(amex("features", "card", store, "--json").stdout)["streams"]
    for stream in facts.values():
        assert stream["known_weights"] == {"source": "Shapes, amex", "licence": "Apache-2.0"}
        assert stream["states"] == {"done": 4, "empty": 0, "failed": 0}
        assert stream["decoders"]
        assert stream["versions"]["torch"]
    for words in (
        "input: 12 frames every 4, 8 fps",
        "weights sha256: `",
        "sampling: `{",
        "decoded by ",
        "amex 0.",
    ):
        assert words in readme
    assert "the names of computers that wrote it" in readme
    assert str(tmp_path) not in readme  # the card does not reveal the folder


def test_weights_are_recognised_by_digest_or_name() -> None:
    file = NETWORKS["s3d"].published
    drawn = known_weights({"network": "s3d", "weights_sha256": "0" * 64}, {"weights": "random:7"})
    assert drawn["source"] == "random, from seed 7"
    spec = {"network": "s3d", "weights_sha256": file.sha256 + "0" * 56}
    assert known_weights(spec, {"weights": "mine.pth"}) == {
        "source": "Kinetics-400, torchvision",
        "url": file.url,
        "licence": "BSD-3-Clause (torchvision)",
    }
    other = {**spec, "weights_sha256": "0" * 64}
    shapes = {"network": "mmdet:shapes_detector", "weights_sha256": SHAPES_DETECTOR.sha256}
    assert known_weights(shapes, {})["source"] == "Shapes, amex"
    assert known_weights(other, {"weights": file.url.rsplit("/", 1)[-1]}) == {}
    clip = known_weights(other, {"weights": "models--openai--clip-vit-base-patch32/snapshots/3d74"})
    assert (clip["licence"], clip["by"]) == ("MIT", "name")
    bert = known_weights(other, {"weights": "models--google-bert--bert-base-uncased/snapshots/86b5"})
    assert bert["source"] == "google-bert/bert-base-uncased, revision 86b5, by the model hub"
    assert "licence" not in bert
    theirs = known_weights({**other, "network": "s3d_milnce"}, {"weights": "s3d_howto100m.pth"})
    assert (theirs["licence"], theirs["by"]) == ("of the code Apache-2.0, of the weights none stated", "name")


@pytest.mark.slow
def test_weights_of_mmdetection_are_recognised() -> None:
    spec = {"network": "mmdet:faster-rcnn_r50_fpn_1x_coco", "weights_sha256": "047c8118" + "0" * 56}
    known = known_weights(spec, {"weights": "mine.pth"})
    assert known["source"] == "MMDetection's model zoo"
    assert known["url"].endswith("047c8118.pth")
    assert known_weights({**spec, "weights_sha256": "1" * 64}, {}) == {}


def test_a_store_in_a_bucket_gets_its_card_and_is_exported(s3: str, tmp_path: Path) -> None:
    from amex.storage import open_path

    store = open_path(f"{s3}/shared.zarr")
    windows(store)
    assert amex("features", "card", store).exit_code == 0
    assert is_card((store / "README.md").read_text())
    assert describe_store(open_store(store))["name"] == "shared.zarr"
    out = tmp_path / "t.parquet"
    done = amex("features", "export", store, "windows", "--out", out, "--format", "parquet")
    assert (done.exit_code, out.exists()) == (0, True)
