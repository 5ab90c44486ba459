"""The pages of a run and of a search need no network, escape users' texts, and work in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from browser import CHROMIUM, NO_CHROMIUM, Page, Pipe, chromium
from conftest import amex, write_lines
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from served import OBJECTS, WINDOWS, write
from videos import encode

from amex.errors import AmexError
from amex.features import ClipRows, ClipSource, create_store, write_sources
from amex.manifests import Clip
from amex.train.bootstrap import Interval
from amex.train.config import check_config
from amex.train.evaluate import score_embeddings
from amex.train.models import SpacesModel
from amex.train.models.relation import ObjectGraph
from amex.train.report.breakdown import hubness
from amex.train.report.comparison import RankedRun, compare_runs
from amex.train.report.predictions import average_precision
from amex.train.report.queries import rank

WICKED = "<script>window.hurt = 'a dog'</script> & a <b>cat</b> \u2028 </script>"
SETTINGS = ("train.epochs=2", "model.text=words", "model.dim=16", "data.batch_size=4")
GRAPH = ("model.graph_dim=8", "model.graphs=2", "model.key_dim=4", "model.word_dim=8")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on clips with videos and drawn features; one caption is HTML. Two of the clips are twins.

    Beside it, in ``mcsan``, lies one that knows objects and concepts.
    """
    folder = tmp_path_factory.mktemp("report")
    (folder / "videos").mkdir()
    twins = {9: 10, 10: 9}
    lines, names = [], [f"v{i}.mp4" for i in range(32)]
    for i, name in enumerate(names):
        encode(folder / "videos" / name, frames=24)
        split = "train" if i < 6 else "val" if i < 9 else "test"
        captions = [f"a dog chases a cat number {i}", f"the {i}th cat sleeps"]
        if i in twins:
            captions = [f"{WICKED} {i}", f"{WICKED} chases {i}"]
        extras = {"swapped": names[twins[i]]} if i in twins else {}
        lines.append({"clip_id": name, "video": name, "split": split, "captions": captions, "extras": extras})
    manifest, store = write_lines(folder / "m.jsonl", *lines), folder / "s.zarr"
    create_store(store)
    write_sources(store, videos=folder / "videos")
    for stream, spec, drawn in (("motion", MOTION, motion), ("objects", OBJECTS, boxes)):
        clips = [ClipRows(clip_id=n, arrays=drawn(i), source=ClipSource(video=n)) for i, n in enumerate(names)]
        write(store, stream, spec, clips)
    assert amex("manifest", "parse", manifest).exit_code == 0
    train("global", folder, *SETTINGS)
    train("mcsan", folder, *SETTINGS, *GRAPH, "model.streams=[motion, objects]")
    return folder / "global"


MOTION = WINDOWS | {"sampling": {}}
# A row is a single frame; videos have 30 frames a second.
BEGINS = np.arange(4) * 5 / 30
TIMES = np.stack([BEGINS, BEGINS + 1 / 30], axis=1)


def motion(seed: int) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(seed).standard_normal((4, 4)).astype(np.float32)
    return {"values": rows, "times": TIMES}


def boxes(seed: int) -> dict[str, np.ndarray]:
    """Two objects on each of four frames."""
    return {
        "values": np.random.default_rng(seed).standard_normal((4, 2, 4)).astype(np.float32),
        "times": TIMES,
        "boxes": np.tile(np.array([[32, 24, 96, 72], [160, 120, 320, 240]], np.float32), (4, 1, 1)),
        "scores": np.tile(np.array([0.25, 0.75], np.float32), (4, 1)),
        "labels": np.tile(np.array([0, 1], np.int32), (4, 1)),
        "counts": np.full(4, 2, np.int32),
        "frame_size": np.tile(np.array([320, 240], np.int32), (4, 1)),
    }


def train(name: str, folder: Path, *settings: str) -> None:
    words = (word for setting in settings for word in ("--set", setting))
    arguments = ("--store", folder / "s.zarr", "--manifest", folder / "m.jsonl", "--work-dir", folder / name)
    trained = amex("train", name, *arguments, *words)
    assert trained.exit_code == 0, trained.output


@pytest.fixture(scope="module")
def written(run: Path) -> Path:
    """The folder of a report."""
    return report(run)


@pytest.fixture(scope="module")
def compared(run: Path) -> Path:
    """The folder of a report of the model with objects and concepts, compared with the other."""
    return report(run.parent / "mcsan", run)


def report(run: Path, *more: Any) -> Path:
    result = amex("report", run, *more)  # the store records where its videos are
    assert result.exit_code == 0, result.output
    assert str(run / "report" / "index.html") in result.output
    return run / "report"


def data(folder: Path, name: str) -> Any:
    """The argument that a data file passes to a function of the page."""
    _, _, rest = (folder / "data" / name).read_text(encoding="ascii").partition("(")
    return json.loads(rest.rstrip().removesuffix(");"))


def test_a_report_needs_no_network_and_has_all_sections(run: Path, written: Path) -> None:
    text = (written / "index.html").read_text()
    for words in ("Text to video", "Video to text", "R@1", "rsum", "Best queries", "Worst queries", "batch_size: 4"):
        assert words in text
    assert text.count("<svg") == 3
    for path in re.findall(r"""(?:src|href)=["']([^#"'][^"']*)["']""", text):
        assert (written / path).is_file(), path  # everything that the page loads is in the folder
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    figures = json.loads(amex("eval", run, "--json").stdout)
    assert f"{figures['rsum']:.1f}" in text
    assert "By verb" in text
    assert "5 to 8 words" in text


def test_every_query_is_listed_with_its_hits(run: Path, written: Path) -> None:
    index, top = data(written, "queries.js"), data(written, "top-0.js")
    figures = json.loads(amex("eval", run, "--json").stdout)
    positions = np.array(index["position"])
    assert len(positions) == figures["text_to_video"]["queries"] == 46
    assert 100 * np.mean(positions <= 5) == pytest.approx(figures["text_to_video"]["R@5"])
    assert np.mean(positions) == pytest.approx(figures["text_to_video"]["MeanR"], rel=1e-4)
    assert f"{WICKED} 9" in index["captions"]
    assert np.shape(top["clips"]) == np.shape(top["scores"]) == np.shape(top["weak"]) == (46, 10)
    assert [found[0] for found in top["clips"]] == index["first"]
    for own, position, found in zip(index["own"], index["position"], top["clips"], strict=True):
        assert (own in found) == (position <= 10)
    assert sorted(index["pictures"]) == list(range(23))
    assert all((written / "pictures" / f"{clip}.jpg").stat().st_size > 500 for clip in index["pictures"])


def test_captions_are_text_not_html(run: Path, compared: Path) -> None:
    text = (compared / "index.html").read_text()
    assert text.count("&lt;script&gt;window.hurt") > 4
    assert "<b>cat" not in text
    result = amex("search", run, WICKED, "--html", run / "found.html", "--videos", run.parent / "videos", "-k", "3")
    assert result.exit_code == 0, result.output
    text = (run / "found.html").read_text()
    assert "<script" not in text
    assert "<b>cat" not in text
    assert text.count("data:image/jpeg;base64,") == 3
    assert re.search(r"[0-9], v[0-9]+\S*, 0\.0 s to ", text)  # the score, the clip, its times


def test_without_videos_a_page_has_no_pictures_and_a_missing_video_costs_only_its_own(
    run: Path, tmp_path: Path
) -> None:
    sources = run.parent / "s.zarr" / "sources.json"
    sources.rename(tmp_path / "sources.json")
    bare = amex("report", run.parent / "mcsan", "--out", tmp_path / "bare")
    (tmp_path / "sources.json").rename(sources)
    assert bare.exit_code == 0, bare.output
    text = (tmp_path / "bare" / "index.html").read_text()
    assert "No pictures: pass the folder of the videos with --videos" in text
    assert "<rect" in text  # boxes are drawn without pictures too
    shutil.copytree(run.parent / "videos", tmp_path / "videos")
    (tmp_path / "videos" / "v10.mp4").unlink()
    arguments = ("--out", tmp_path / "partly", "--videos", tmp_path / "videos", "--pictures", "100")
    partly = amex("report", run.parent / "mcsan", *arguments)
    assert partly.exit_code == 0, partly.output
    assert "no thumbnail of v10.mp4" in partly.output
    assert "no frames of v10.mp4" in partly.output
    pictures = data(tmp_path / "partly", "queries.js")["pictures"]
    assert len(pictures) > 10  # of the clips that are shown or retrieved, except v10.mp4, which is clip 1
    assert 1 not in pictures


def test_objects_are_drawn_with_the_edges_between_them_beside_the_twin(compared: Path) -> None:
    text = (compared / "index.html").read_text()
    drawings = text.split('class="drawing"')[1:]
    assert len(drawings) == 2  # v9 and v10
    for drawing in drawings:
        assert drawing.count("<rect") == 2 * 3
        assert drawing.count('<line class="spatial"') == 2 * 3  # to each object from the other
        for picture in re.findall(r'<image href="([^"]+)"', drawing):
            assert (compared / picture).stat().st_size > 500
        assert drawing.count("<image") == 3
    assert "roles exchanged" in text
    assert "relationship" in text


def test_levels_and_concepts_are_shown_of_a_model_that_has_them(written: Path, compared: Path) -> None:
    text = (compared / "index.html").read_text()
    assert "By each level of the model alone" in text
    assert "mAP, clips" in text
    for concept in ("chase", "sleep"):
        assert re.search(rf'class="(right|wrong)">{concept} [01]\.', text), concept
    assert "mAP, clips" not in (written / "index.html").read_text()


def test_two_runs_are_compared_query_by_query(run: Path, compared: Path, tmp_path: Path) -> None:
    text, index = (compared / "index.html").read_text(), data(compared, "queries.js")
    assert "Comparison with global" in text
    assert "46 of 46 queries and 23 of 23" in text
    assert index["other"] == data(run / "report", "queries.js")["position"]
    itself = amex("report", run, run, "--out", tmp_path / "same", "--pictures", "0")
    assert itself.exit_code == 0, itself.output
    assert "+0.0 to +0.0" in (tmp_path / "same" / "index.html").read_text()


@pytest.mark.parametrize("wrong", ["nothing", "page.html"])
def test_invalid_outputs_and_comparisons_are_an_error_in_one_line(run: Path, tmp_path: Path, wrong: str) -> None:
    arguments = [tmp_path / wrong] if wrong == "nothing" else ["--out", tmp_path / wrong]
    result = amex("report", run, *arguments)
    assert result.exit_code == 1
    assert str(tmp_path / wrong) in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    result = amex("report", tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path) in result.output


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipe]:
    if CHROMIUM is None:
        pytest.skip(NO_CHROMIUM)
    with chromium(tmp_path_factory.mktemp("profile")) as pipe:
        yield pipe


@pytest.fixture
def page(browser: Pipe, compared: Path) -> Iterator[Page]:
    """The page opened from disk; at the end, no script may have failed and no text may have been executed."""
    page = Page(browser)
    page.open((compared / "index.html").as_uri())
    page.wait(f"{ROWS} === 25")
    yield page
    assert page.run("window.hurt") is None
    assert page.errors == []
    page.close()


ROWS = "document.querySelectorAll('#queries > li').length"
COUNT = "document.getElementById('count').textContent"
AT = "[...document.querySelectorAll('.query .at b')].map((at) => parseFloat(at.textContent))"


def pick(page: Page, name: str, value: str) -> None:
    page.run(f"(({name}) => {{ {name}.value = '{value}'; {name}.dispatchEvent(new Event('change')); }})"
             f"(document.getElementById('{name}'))")  # fmt: skip


def test_queries_can_be_filtered_sorted_paged_and_opened(page: Page, compared: Path) -> None:
    positions = data(compared, "queries.js")["position"]
    pick(page, "order", "worst")
    assert page.run(AT) == pytest.approx(sorted(positions, reverse=True)[:25], abs=0.05)
    page.run("document.getElementById('after').click()")
    assert page.run(AT) == pytest.approx(sorted(positions, reverse=True)[25:], abs=0.05)
    pick(page, "which", "first")
    assert page.run(COUNT) == f"{positions.count(1)} of 46 queries"
    pick(page, "which", "all")
    page.run("document.getElementById('words').focus()")
    page.type("HURT v9 chases")
    assert page.run(COUNT) == "1 of 46 queries"
    assert page.run("document.querySelector('.said').textContent") == f"{WICKED} chases 9"
    page.run("document.querySelector('.query').click()")
    assert page.wait("document.querySelectorAll('.top figure').length") in (10, 11)
    assert page.run("document.querySelector('.top figure.own figcaption').textContent").count("right clip") == 1
    page.wait("[...document.querySelectorAll('.top img')].every((image) => image.naturalWidth > 0)")


def test_the_page_fits_a_phone_and_has_a_dark_mode(page: Page) -> None:
    page.size(360, 740)
    page.media(prefers_color_scheme="dark")
    page.run("document.querySelector('.query').click()")
    page.wait("document.querySelector('.top figure')")
    assert page.run("document.documentElement.scrollWidth") <= 360
    colours = "['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])"
    ink, back = ([int(x) for x in re.findall(r"\d+", colour)] for colour in page.run(colours))
    assert sum(ink) > 600
    assert sum(back) < 100
    # Texts of charts are paths in the page's text colour.
    assert page.run("[...document.querySelectorAll('.chart svg text, .chart svg g')].length") > 50


def test_a_page_without_its_data_says_what_is_missing(browser: Pipe, written: Path, tmp_path: Path) -> None:
    shutil.copy(written / "index.html", tmp_path / "alone.html")
    page = Page(browser)
    page.open((tmp_path / "alone.html").as_uri())
    page.wait("document.readyState === 'complete'")
    assert 'the folder "data" beside this page' in page.run(COUNT)
    (tmp_path / "data").mkdir()
    shutil.copy(written / "data" / "queries.js", tmp_path / "data")
    page.open((tmp_path / "alone.html").as_uri())
    page.wait(f"{ROWS} === 25")
    page.run("document.querySelector('.query').click()")
    page.wait("document.querySelector('.top')?.textContent.includes('keep all files of the page together')")
    page.close()


# --- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", ["spatial", "temporal", "both", "joint", "none"])
def test_edge_weights_of_an_object_sum_to_1_and_connect_only_present_objects(kinds: str) -> None:
    torch.manual_seed(0)
    options = check_config({"model": {"name": "amenet", "graph": kinds, "graph_dim": 8, "distance": 0.4}}, "").model
    graph = ObjectGraph(4, options, 0.0).eval()
    mask = torch.rand(2, 5, 3) < 0.7
    corner = torch.rand(2, 5, 3, 2) / 2
    objects = {
        "values": torch.randn(2, 5, 3, 4), "mask": mask, "scores": torch.rand(2, 5, 3),
        "boxes": torch.cat([corner, corner + 0.2], -1), "seconds": torch.arange(5.0).expand(2, 5),
    }  # fmt: skip
    weights = graph.edge_weights(objects)
    assert set(weights) == {"both": {"spatial", "temporal"}, "none": set()}.get(kinds, {kinds})
    nothing = torch.zeros_like(mask[:, :1])
    beside = torch.cat([torch.cat([nothing, mask[:, :-1]], 1), torch.cat([mask[:, 1:], nothing], 1)], -1)
    senders = {"spatial": mask, "temporal": beside, "joint": mask.flatten(1).unsqueeze(1).expand(-1, 5, -1)}
    for kind, weight in weights.items():
        flat = weight.flatten(3)
        total = flat.sum(-1)
        assert torch.allclose(total, (total > 0).float(), atol=1e-5), kind
        assert (total[~mask] == 0).all()
        assert (total[mask] > 0).any()
        assert (flat[~senders[kind].unsqueeze(2).expand_as(flat)] == 0).all()


class Plain(SpacesModel):
    level_weights: ClassVar = {"x": 1.0}


def test_two_runs_are_compared_on_their_common_queries() -> None:
    """The second run lacks two clips and has the others in another order."""
    vectors = torch.nn.functional.normalize(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    queries = torch.nn.functional.normalize(vectors + 0.5 * torch.randn(12, 4, generator=torch.manual_seed(2)), dim=1)

    def run(name: str, clips: list[int]) -> RankedRun:
        split = SimpleNamespace(
            clips=[Clip(clip_id=f"c{i}", video="v") for i in clips],
            captions=[f"said {i}" for i in clips],
            own=[[i] for i in range(len(clips))],
            queries=[[i] for i in range(len(clips))],
        )
        videos, texts = {"x": vectors[clips]}, {"x": queries[clips]}
        scores = score_embeddings(Plain(), videos, texts)
        return RankedRun(name=name, split=split, scores=scores, ranking=rank(Plain(), split, videos, texts, scores))

    result, part = run("whole", list(range(12))), run("part", [7, 3, 1, 0, 2, 11, 10, 5, 4, 6])
    two = compare_runs(result, part)
    assert (two.clips, two.of_clips, two.queries, two.of_queries) == (10, 12, 10, 12)
    assert two.chosen.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10, 11]
    assert (two.run == two.other).all()
    assert (two.run <= result.ranking.positions[two.chosen]).all()  # in a smaller gallery
    assert all(row.interval.difference == 0 for row in two.rows)
    with pytest.raises(AmexError, match="no caption of a clip in common"):
        compare_runs(run("a", [0, 1]), run("b", [2, 3]))


def test_clips_that_share_a_caption_or_are_twins_are_drawn_together(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = {"extras": {"swapped": "c1"}}
    clips = [Clip(clip_id=f"c{i}", video="v", captions=["said"] if i > 1 else [f"said {i}"]) for i in range(4)]
    clips[0] = Clip(clip_id="c0", video="v", captions=["said 0"], **twin)
    split = SimpleNamespace(
        clips=clips, captions=["said 0", "said 1", "said"], own=[[0], [1], [2], [2]], queries=[[0], [1], [2], [2]]
    )
    videos, texts = {"x": torch.eye(4)}, {"x": torch.eye(4)[:3]}
    scores = score_embeddings(Plain(), videos, texts)
    run = RankedRun(name="run", split=split, scores=scores, ranking=rank(Plain(), split, videos, texts, scores))
    drawn = []

    def bootstrap(a: np.ndarray, b: np.ndarray, groups: np.ndarray) -> Interval:
        drawn.append(groups.tolist())
        return Interval(0.0, 0.0, 0.0)

    monkeypatch.setattr("amex.train.report.comparison.paired_bootstrap", bootstrap)
    compare_runs(run, run)
    assert all(a == b != c == d for a, b, c, d in drawn)
    assert len(drawn) == 4


def ranked(best: list[list[int]], own: list[int]) -> Any:
    return SimpleNamespace(best=np.array(best), own=np.array(own))


def test_always_retrieved_clips_are_hubs_and_never_retrieved_ones_antihubs() -> None:
    even = hubness(ranked([[(i + k) % 20 for k in range(1, 4)] for i in range(20)], list(range(20))), 20)
    assert (even.skewness, even.antihubs, even.mean) == (0.0, 0, 3.0)
    crowded = hubness(ranked([[0, i] for i in range(1, 21)], list(range(1, 21))), 21)
    assert crowded.hubs[0] == (0, 20)
    assert crowded.antihubs == 20  # each is retrieved only for its own caption, which does not count
    assert crowded.skewness > 4
    assert hubness(ranked([[0]], [0]), 19) is None


@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1)), st.integers(0, 10_000))
def test_average_precision_is_the_mean_precision_at_true_items(chances: np.ndarray, seed: int) -> None:
    truth = np.random.default_rng(seed).random(len(chances)) < 0.4
    order = sorted(range(len(chances)), key=lambda i: -chances[i])
    precisions = [sum(truth[j] for j in order[: n + 1]) / (n + 1) for n, i in enumerate(order) if truth[i]]
    assert average_precision(chances, truth) == pytest.approx(np.mean(precisions) if precisions else 0.0)
