"""A recipe has the settings of its source, and a run with it gives the streams that users of the paper expect."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import amex, extract, write_lines
from models import tiny_clip
from videos import encode

from amex.errors import AmexError
from amex.extract.encoders.networks import NETWORKS
from amex.extract.encoders.presets import IMAGENET, PRESETS, UNIT, plan_windows
from amex.extract.encoders.recipes import RECIPES, find_recipe
from amex.extract.encoders.registry import is_text
from amex.features import open_store
from amex.train.config import load_config

# Each stream: length of a feature; samples per second, frames per window, step and stride; resize and crop.
CLIP = (512, (1, 1, 1, 1), (224, (224, 224)))
FRAMES_OF_MSRVTT = (2048, (None, 1, 1, 16), (256, (224, 224)))
SLOWFAST = (2304, (30, 32, 2, 60), (224, (224, 224)))
DESCRIBED = {
    "clip4clip": {"clip_vit_b32": CLIP},
    "moment_detr": {"slowfast_features": SLOWFAST, "clip_features": (512, (0.5, 1, 1, 1), (224, (224, 224)))},
    "hero": {"slowfast_features": SLOWFAST, "resnet_features": (2048, (0.5, 1, 1, 1), (224, None))},
    "howto100m": {
        "resnet152": (2048, (1, 1, 1, 1), (224, None)),
        "resnext101_3d": (2048, (24, 16, 1, 16), (112, (112, 112))),
    },
    "coot": {"video_feat_100m": (512, (16, 32, 1, 16), (256, (256, 256)))},
    "mmpt": {"s3d": (512, (30, 30, 1, 30), (224, (224, 224)))},
    "hgr": {"resnet152": FRAMES_OF_MSRVTT},
    "mcsan": {"resnet152": FRAMES_OF_MSRVTT},
    "amenet": {
        "resnet152": (2048, (1, 1, 1, 1), (256, (224, 224))),
        "r2plus1d_18": (512, (None, 16, 1, 16), ((128, 171), (112, 112))),
    },
    "hcmi": {"clip_vit_b32": CLIP},
}
TEXT = {
    "clip4clip": {"text_clip": "text_clip"},
    "moment_detr": {"clip_text_features": "text_clip"},
    "coot": {"text_bert": "text_bert"},
    "mmpt": {"text_bert": "text_bert"},
    "amenet": {"text_bert": "text_bert"},
    "hcmi": {"text_clip": "text_clip"},
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_has_the_settings_of_its_source(name: str) -> None:
    recipe = find_recipe(name)
    streams = {}
    for stream, network in recipe.streams.items():
        if network in NETWORKS:
            options = {"preset": recipe.presets.get(stream), "options": recipe.settings.get(stream, {})}
            plan = plan_windows(stream, network=network, weights="random:0", precision="fp32", **options)
            s, t = plan.sampling, plan.transform
            assert s.count is None
            streams[stream] = (NETWORKS[network].dim, (s.fps, s.frames, s.step, s.stride), (t.resize, t.crop))
    assert streams == DESCRIBED[name]
    texts = {stream: network for stream, network in recipe.streams.items() if is_text(network)}
    assert texts == TEXT.get(name, {})
    assert recipe.streams.keys() - streams.keys() - texts.keys() == ({"frcnn_r50_coco"} if name == "amenet" else set())
    # Presets and settings are for streams of the recipe.
    assert recipe.presets.keys() | recipe.settings.keys() <= recipe.streams.keys()
    assert recipe.source
    assert recipe.note


def test_pixels_are_scaled_as_in_the_sources() -> None:
    for recipe, stream, mean, std in (
        ("moment_detr", "slowfast_features", [0.45] * 3, [0.225] * 3),
        ("coot", "video_feat_100m", UNIT["mean"], UNIT["std"]),
        ("howto100m", "resnet152", IMAGENET["mean"], IMAGENET["std"]),
        ("howto100m", "resnext101_3d", np.array([110.6, 103.2, 96.3]) / 255, np.ones(3) / 255),
    ):
        transform = PRESETS[find_recipe(recipe).presets[stream]].transform
        assert np.allclose(transform.mean, mean), recipe
        assert np.allclose(transform.std, std), recipe


def test_objects_are_36_boxes_of_8_frames_as_the_configuration_reads_them() -> None:
    assert find_recipe("amenet").settings["frcnn_r50_coco"] == {"count": "8", "boxes": "36"}


@pytest.mark.parametrize("name", ["hgr", "mcsan", "amenet", "hcmi"])
def test_the_configurations_of_a_model_find_the_streams_of_its_recipe(name: str) -> None:
    model = load_config(f"{name}_msrvtt").model
    streams = {name for name in model.video_streams if name}
    if model.text.startswith("text_"):
        streams.add(model.text)
    assert streams <= find_recipe(name).streams.keys()


def test_for_an_unknown_recipe_a_similar_one_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(AmexError, match="unknown recipe 'clip4clp'; did you mean 'clip4clip'"):
        find_recipe("clip4clp")
    result = amex("extract", "--recipe", "mment", "--dataset", "folder", "--videos", tmp_path, "--store", "s")
    assert result.exit_code == 1
    assert "unknown recipe 'mment'" in result.stderr
    assert "moment_detr" in result.stderr


@pytest.mark.parametrize("more", [("--stream", "resnet152"), ("--recipe", "howto100m")])
def test_a_stream_of_the_recipe_cannot_be_repeated(more: tuple[str, str], tmp_path: Path) -> None:
    options = ("--dataset", "folder", "--videos", tmp_path, "--store", tmp_path / "s.zarr")
    result = amex("extract", "--recipe", "hgr", *more, *options)
    assert result.exit_code == 2
    assert "stream 'resnet152' of recipe hgr is also one of another recipe or of --stream" in result.stderr


def test_recipes_of_other_streams_run_together(clips: Path, tmp_path: Path) -> None:
    options = ("--dataset", "folder", "--videos", clips, "--store", tmp_path / "s.zarr", "--device", "cpu")
    result = amex("extract", "--recipe", "mmpt", "--recipe", "nobody", *options)
    assert "unknown recipe 'nobody'" in result.stderr
    result = amex("extract", "--recipe", "mmpt", "--recipe", "hgr", "--weights", "text_bert=random:0", *options)
    assert "stream s3d: amex does not download" in result.stderr


def test_for_weights_that_amex_does_not_download_the_error_gives_the_url(clips: Path, tmp_path: Path) -> None:
    options = ("--dataset", "folder", "--videos", clips, "--store", tmp_path / "s.zarr", "--device", "cpu")
    result = amex("extract", "--recipe", "coot", *options)
    assert result.exit_code == 1
    for words in ("stream video_feat_100m: ", "s3d_howto100m.pth", "--weights STREAM=FILE", "random:0"):
        assert words in result.stderr


def test_windows_that_a_network_cannot_process_are_refused() -> None:
    for network, frames, multiple in (("s3d_milnce", "31", 2), ("slowfast_r50", "30", 4)):
        with pytest.raises(AmexError, match=f"multiple of {multiple}, got {frames}"):
            plan_windows("s", network=network, weights="random:0", precision="fp32", options={"frames": frames})


def test_the_list_shows_the_options_of_each_recipe() -> None:
    listed = amex("streams", "--recipes").output
    assert "--set clip_features.fps=0.5" in listed
    for name, recipe in RECIPES.items():
        assert f"{name}: {recipe.source}" in listed
        assert recipe.note in listed
    assert "moment_detr" in amex("streams").output


def test_the_documentation_has_every_recipe_with_its_streams() -> None:
    rows = (Path(__file__).parents[1] / "docs" / "reference" / "recipes.md").read_text().splitlines()
    for name, recipe in RECIPES.items():
        (row,) = [row for row in rows if row.startswith(f"| `{name}` |")]
        assert all(f"`{stream}`" in row.split("|")[2] for stream in recipe.streams)


def test_a_recipe_can_be_combined_with_the_users_options(clips: Path, tmp_path: Path, cluster: str) -> None:
    # 40 frames at 30 fps: the recipe samples every frame, and the stride of the user keeps every 20th.
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "a.mp4"})
    options = ("--recipe", "hgr", "--weights", "resnet152=random:0", "--set", "resnet152.stride=20")
    extract(clips, tmp_path / "s.zarr", cluster, *options, "--precision", "fp32", "--manifest", manifest)
    rows = open_store(tmp_path / "s.zarr")["resnet152"]["a"]
    assert rows.values.shape == (2, 2048)
    assert np.allclose(rows.times[:, 0], [0, 20 / 30])


@pytest.mark.slow
def test_moment_detrs_features_are_aligned_every_two_seconds(tmp_path: Path, cluster: str) -> None:
    (tmp_path / "v").mkdir()
    encode(tmp_path / "v" / "a.mp4", frames=180)  # 6 s
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "a.mp4", "captions": ["a red circle"]})
    weights = {
        "slowfast_features": "random:0",
        "clip_features": "random:0",
        "clip_text_features": tiny_clip(tmp_path / "c"),
    }
    options = [argument for name, which in weights.items() for argument in ("--weights", f"{name}={which}")]
    extract(tmp_path / "v", tmp_path / "s.zarr", cluster, "--recipe", "moment_detr", "--manifest", manifest, *options)
    store = open_store(tmp_path / "s.zarr")
    slowfast, clip = store["slowfast_features"]["a"], store["clip_features"]["a"]
    assert slowfast.values.shape == (3, 2304)
    assert clip.values.shape == (3, 512)
    assert np.allclose(slowfast.times[:, 0], [0, 2, 4])
    assert np.allclose(clip.times[:, 0], [0, 2, 4])
    assert len(store["clip_text_features"]["a red circle"]) > 0
