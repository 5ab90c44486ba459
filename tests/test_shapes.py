"""Clips of Shapes match their captions, are reproducible, and their boxes enclose the objects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import amex
from hypothesis import given, settings
from hypothesis import strategies as st

from amex.manifests import ManifestError, read_manifest
from amex.shapes.renderer import (
    COLOURS,
    EVENTS,
    LABELS,
    MOTIONS,
    RELATIONS,
    Thing,
    choose_objects,
    draw,
    make_shapes,
    place_objects,
    scene_of,
    texture,
    twin_of,
)


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])


def test_seed_and_size_decide_every_clip_independently_of_their_number(tmp_path: Path) -> None:
    few, more = (make_shapes(tmp_path / str(count), clips=count, seed=3, size=64) for count in (3, 5))
    other_seed = make_shapes(tmp_path / "other", clips=3, seed=4, size=64)
    assert read_manifest(few) == read_manifest(more)[:3] != read_manifest(other_seed)
    for clip in read_manifest(few):
        assert (few.parent / "videos" / clip.video).read_bytes() == (more.parent / "videos" / clip.video).read_bytes()
    frames = frames_of(few.parent / "videos" / read_manifest(few)[0].video)
    assert frames.shape == (60, 64, 64, 3)


def test_the_manifest_describes_the_objects_of_each_clip(tmp_path: Path) -> None:
    clips = read_manifest(make_shapes(tmp_path, clips=20, seed=0, size=96))
    assert Counter(clip.split for clip in clips) == {"train": 14, "val": 2, "test": 4}
    for clip in clips:
        things = clip.extras["objects"]
        assert 2 <= len(things) <= 4
        assert len({thing["label"] for thing in things}) == len(things)
        assert len(clip.extras["boxes"]) == 60
        assert len(set(clip.captions)) == 3
        actor = things[0]["label"]
        assert all(actor in caption for caption in clip.captions)
        verb = clip.extras["event"]
        caption = f"a {actor} {verb}" + (f" a {things[1]['label']}" if verb in RELATIONS else "")
        assert clip.captions[0] == caption
        for boxes in clip.extras["boxes"]:
            assert len(boxes) == len(things)
            for box in boxes:
                assert box is None or (0 <= box[0] < box[2] <= 96 and 0 <= box[1] < box[3] <= 96)


def test_twins_have_exchanged_roles_and_share_a_split() -> None:
    pairs = Counter()
    for index in range(300):
        twin = twin_of(index)
        if twin is None:
            continue
        assert twin_of(twin) == index
        assert twin % 10 == index % 10 == 7 or (twin // 10 == index // 10 and {twin % 10, index % 10} == {8, 9})
        pairs["val" if index % 10 == 7 else "test"] += 1
        scene, twin_scene = scene_of(5, index)[0], scene_of(5, twin)[0]
        assert scene.event == twin_scene.event
        assert scene.event in RELATIONS
        assert scene.event != "swaps with"
        assert [thing.label for thing in scene.things[:2]] == [thing.label for thing in reversed(twin_scene.things[:2])]
        assert [thing.label for thing in scene.things[2:]] == [thing.label for thing in twin_scene.things[2:]]
    assert pairs == {"val": 20, "test": 40}  # two of three


def test_training_clips_may_have_twins_and_the_other_clips_do_not_change(tmp_path: Path) -> None:
    pairs = 0
    for index in range(300):
        twin = twin_of(index, train_twins=True)
        if index % 10 >= 7:
            assert twin == twin_of(index)
            continue
        if twin is None:
            continue
        pairs += 1
        assert twin_of(twin, train_twins=True) == index
        assert twin // 10 == index // 10
        assert twin % 10 < 7
        scene, twin_scene = (scene_of(5, i, train_twins=True)[0] for i in (index, twin))
        assert scene.event == twin_scene.event
        assert [thing.label for thing in scene.things[:2]] == [thing.label for thing in reversed(twin_scene.things[:2])]
    assert pairs == 120  # two of three pairs; one clip of seven has no twin
    plain, paired = (
        read_manifest(make_shapes(tmp_path / name, clips=10, size=32, train_twins=name == "paired"))
        for name in ("plain", "paired")
    )
    assert not {clip.video for clip in plain} & {clip.video for clip in paired}  # one folder may hold both
    assert [clip.captions for clip in plain[7:]] == [clip.captions for clip in paired[7:]]
    assert sum("swapped" in clip.extras for clip in paired[:7]) == 4


@settings(max_examples=150)
@given(event=st.sampled_from(EVENTS), seed=st.integers(0, 10_000))
def test_the_motion_matches_the_name_of_the_event(event: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    things = choose_objects(generator, event)
    while not place_objects(generator, event, things):
        pass
    for thing in things:
        reach = (thing.radius * thing.scale)[:, None]
        assert (thing.path - reach > -1e-9).all()
        assert (thing.path + reach < 1 + 1e-9).all()
    a, b = things[:2]
    moved = a.path[-1] - a.path[0]
    if event in MOTIONS:
        others = things[1:]
    else:
        others = things[2:]
        apart = np.linalg.norm(a.path - b.path, axis=1)
        touch = a.radius + b.radius
        pushed = np.linalg.norm(b.path[-1] - b.path[0])
    for bystander in others:  # bystanders hardly move
        assert np.linalg.norm(bystander.path[-1] - bystander.path[0]) < 0.08
    match event:
        case "moves left":
            assert moved[0] < -0.3
        case "moves right":
            assert moved[0] > 0.3
        case "moves up":
            assert moved[1] < -0.3
        case "moves down":
            assert moved[1] > 0.3
        case "spins":
            assert abs(a.angle[-1] - a.angle[0]) > 6
            assert a.shape != "circle"
        case "grows":
            assert a.scale[-1] > 1.7
        case "shrinks":
            assert a.scale[-1] < 0.6
        case "blinks":
            assert 4 <= np.count_nonzero(np.diff(a.visible.astype(int))) <= 10
        case "pushes":
            assert pushed > 0.25
            assert apart[0] > touch + 0.2
            assert abs(apart[-1] - touch) < 1e-6
            assert np.linalg.norm(b.path[15] - b.path[0]) < 1e-9  # it does not move before it is touched
        case "follows":
            assert pushed > 0.3
            assert np.linalg.norm(moved) > 0.3
            assert (apart > touch).all()
            assert np.dot(b.path[0] - a.path[0], moved) > 0  # b is ahead
        case "orbits":
            around = np.unwrap(np.arctan2(*(a.path - b.path).T))
            assert abs(abs(around[-1] - around[0]) - 2 * np.pi) < 1e-6
            assert pushed == 0
        case "jumps over":
            assert np.sign(a.path[0, 0] - b.path[0, 0]) != np.sign(a.path[-1, 0] - b.path[-1, 0])
            assert a.path[30, 1] < b.path[30, 1] - touch  # above it at half-time
            assert pushed == 0
        case "passes behind":
            assert apart.min() < 0.02
            assert min(apart[0], apart[-1]) > touch
        case "swaps with":
            np.testing.assert_allclose(a.path[-1], b.path[0], atol=1e-9)
            np.testing.assert_allclose(b.path[-1], a.path[0], atol=1e-9)
        case "approaches":
            assert apart[0] - apart[-1] > 0.25
            assert pushed == 0
        case "leaves":
            assert apart[-1] - apart[0] > 0.25
            assert pushed == 0


def test_boxes_enclose_their_objects() -> None:
    for index in range(12):
        scene, generator = scene_of(9, index)
        for image, boxes in list(draw(scene, texture(generator, 160), generator))[::20]:
            for thing, box in zip(scene.things, boxes, strict=True):
                if box is None or scene.event == "passes behind":
                    continue
                middle = [(box[0] + box[2]) // 2, (box[1] + box[3]) // 2]
                if thing.shape == "triangle":  # its centre is below the centre of its box
                    continue
                patch = image[middle[1] - 2 : middle[1] + 3, middle[0] - 2 : middle[0] + 3].mean((0, 1))
                assert np.abs(patch - COLOURS[thing.colour]).max() < 45, (index, thing.label)


def test_hidden_objects_have_no_box() -> None:
    scene, generator = scene_of(0, 0)
    front = Thing(colour="red", shape="square", size="large", radius=0.2)
    back = Thing(colour="blue", shape="circle", size="small", radius=0.05)
    front.path += 0.5
    back.path += 0.5
    scene.event, scene.things = "passes behind", [back, front]
    _, boxes = next(draw(scene, texture(generator, 64), generator))
    assert boxes[0] is None
    assert boxes[1] is not None


def test_the_detectors_classes_are_the_labels_of_shapes() -> None:
    from mmengine.config import Config

    from amex.extract.encoders.objects import SHAPES_DETECTOR_CONFIG

    assert tuple(Config.fromfile(SHAPES_DETECTOR_CONFIG).classes) == LABELS


@pytest.mark.parametrize("size", [0, 31, 97])
def test_sizes_that_cannot_be_encoded_are_refused(tmp_path: Path, size: int) -> None:
    with pytest.raises(ManifestError, match="must be an even number"):
        make_shapes(tmp_path, clips=1, size=size)


def test_shapes_are_drawn_from_the_command_line(tmp_path: Path) -> None:
    output = amex("manifest", "shapes", "--out", tmp_path / "s", "--clips", 10, "--size", 64).output
    assert "10 clips of 10 videos (7 train, 1 val, 2 test), 30 captions" in output
    assert len(list((tmp_path / "s" / "videos").glob("*.mp4"))) == 10
    amex("manifest", "shapes", "--out", tmp_path / "t", "--clips", 2, "--size", 32, "--train-twins")
    assert [clip.extras["swapped"] for clip in read_manifest(tmp_path / "t" / "manifest.jsonl")] == [
        "twins_0_00001.mp4",
        "twins_0_00000.mp4",
    ]
