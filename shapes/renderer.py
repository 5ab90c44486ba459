"""Shapes, the built-in data set: short H.264 clips of coloured shapes that move or interact.

Shapes serves to try amex and to compare models without a download. Every clip has one event: a motion of one object, or
a relation between two objects; the other objects only stand or drift. The clips for validation and test come in pairs.
In most pairs, the second clip is the first with the roles exchanged ("a red circle pushes a blue square", "a blue
square pushes a red circle"). A model that only recognises the objects and the event is therefore right in half of them.

This module only draws clips and writes their manifest. The manifest's extras contain the event and all boxes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from ..manifests.clip import Clip, ManifestError, write_manifest

FPS = 25
FRAMES = 60
CAPTIONS = 3  # per clip
COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 255),
    "yellow": (241, 196, 15),
    "purple": (142, 68, 173),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (0.065, 0.08), "large": (0.11, 0.13)}  # range of radii, as fractions of the frame's side
# The classes of a detector.
LABELS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
# An object has a box if at least this share of its area is visible.
IN_SIGHT = 0.25

# Captions of each event, the simplest first. {a} is the agent, {b} the other object of a relation.
MOTIONS = {
    "moves left": ("{a} moves left", "{a} slides to the left", "{a} is heading left"),
    "moves right": ("{a} moves right", "{a} slides to the right", "{a} is heading right"),
    "moves up": ("{a} moves up", "{a} rises", "{a} is going upwards"),
    "moves down": ("{a} moves down", "{a} sinks", "{a} is going downwards"),
    "spins": ("{a} spins", "{a} turns around on the spot", "{a} is rotating"),
    "grows": ("{a} grows", "{a} gets bigger", "{a} is swelling"),
    "shrinks": ("{a} shrinks", "{a} gets smaller", "{a} is dwindling"),
    "blinks": ("{a} blinks", "{a} flashes on and off", "{a} keeps vanishing and coming back"),
}
RELATIONS = {
    "pushes": ("{a} pushes {b}", "{a} is shoving {b} along", "{b} is pushed by {a}"),
    "follows": ("{a} follows {b}", "{a} trails behind {b}", "{b} is followed by {a}"),
    "orbits": ("{a} orbits {b}", "{a} circles around {b}", "{b} is orbited by {a}"),
    "jumps over": ("{a} jumps over {b}", "{a} leaps across {b}", "{b} is jumped over by {a}"),
    "passes behind": ("{a} passes behind {b}", "{a} goes by at the back of {b}", "{b} is passed from behind by {a}"),
    "swaps with": ("{a} swaps with {b}", "{a} and {b} change places", "{b} trades places with {a}"),
    "approaches": ("{a} approaches {b}", "{a} comes closer to {b}", "{b} is approached by {a}"),
    "leaves": ("{a} leaves {b}", "{a} moves away from {b}", "{b} is left behind by {a}"),
}
SYMMETRIC = frozenset({"swaps with"})
EVENTS = (*MOTIONS, *RELATIONS)


@dataclass(kw_only=True)
class Thing:
    """An object of a scene. Lengths are fractions of the frame's side; y points down.

    Attributes:
        size: a key of SIZES.
        path: (FRAMES, 2) position of its centre.
        scale: (FRAMES,) factor of its radius.
        angle: (FRAMES,) radians.
        visible: (FRAMES,) bool.
    """

    colour: str
    shape: str
    size: str
    radius: float
    path: np.ndarray = field(default_factory=lambda: np.zeros((FRAMES, 2)))
    scale: np.ndarray = field(default_factory=lambda: np.ones(FRAMES))
    angle: np.ndarray = field(default_factory=lambda: np.zeros(FRAMES))
    visible: np.ndarray = field(default_factory=lambda: np.ones(FRAMES, dtype=bool))

    @property
    def label(self) -> str:
        """One of LABELS."""
        return f"{self.colour} {self.shape}"


@dataclass(kw_only=True)
class Scene:
    """An event and the objects of a clip. First the agent, then the other object of a relation, then bystanders."""

    event: str
    things: list[Thing]


def make_shapes(
    folder: Path,
    *,
    clips: int,
    seed: int = 0,
    size: int = 160,
    train_twins: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Path:
    """Write ``clips`` videos to ``folder/videos`` and their manifest to ``folder/manifest.jsonl``.

    Of ten consecutive clips, seven are for training, one for validation and two for test. The clip at an index depends
    only on seed and size, not on the number of clips. Existing video files are kept.

    Args:
        folder: created if it does not exist.
        clips: number of clips.
        size: side of the square frames in pixels; must be even for H.264.
        train_twins: also draw most training clips in pairs with exchanged roles. These clips have other names.
        progress: called after each clip with the number of finished clips.

    Returns:
        The path of the manifest.

    Raises:
        ManifestError: if the size is odd or less than 32.
    """
    if size < 32 or size % 2:
        raise ManifestError(f"the size of frames must be an even number of at least 32, got {size}")
    videos = folder / "videos"
    videos.mkdir(parents=True, exist_ok=True)

    def make(index: int) -> Clip:
        name = clip_name(seed, index, train_twins)
        scene, generator = scene_of(seed, index, train_twins)
        background = texture(generator, size)
        drawn = list(draw(scene, background, generator))
        if not (videos / name).exists():
            encode(videos / name, (image for image, _ in drawn), size)
        extras: dict[str, Any] = {
            "event": scene.event,
            "objects": [{"label": thing.label, "size": thing.size} for thing in scene.things],
            "boxes": [boxes for _, boxes in drawn],  # one list per frame, in the order of objects; null: not visible
        }
        if (twin := twin_of(index, train_twins)) is not None:
            extras["swapped"] = clip_name(seed, twin, train_twins)
        split = ("train",) * 7 + ("val",) + ("test",) * 2
        captions = describe(scene, generator)
        return Clip(clip_id=name, video=name, split=split[index % 10], captions=captions, extras=extras)

    finished = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # NumPy and x264 release the GIL
        for clip in pool.map(make, range(clips)):
            finished.append(clip)
            progress(len(finished))
    write_manifest(finished, folder / "manifest.jsonl")
    return folder / "manifest.jsonl"


def clip_name(seed: int, index: int, train_twins: bool = False) -> str:
    """Return the file name of a clip, which is also its id."""
    return f"{'twins' if train_twins else 'shapes'}_{seed}_{index:05d}.mp4"


def twin_of(index: int, train_twins: bool = False) -> int | None:
    """Return the index of the clip with the same event and exchanged roles, in the same split; None if there is none.

    Every third pair consists of independent clips instead.
    """
    block, position = divmod(index, 10)
    if position < 7:  # train: pairs of neighbours; the seventh has no twin
        paired = train_twins and position < 6 and (block + position // 2) % 3 != 2
        return index + (1 if position % 2 == 0 else -1) if paired else None
    if (block // 2 if position == 7 else block) % 3 == 2:
        return None
    if position == 7:  # val: one clip in each block of ten, so the twin is in the next or the previous block
        return index + (10 if block % 2 == 0 else -10)
    return index + 1 if position == 8 else index - 1


def scene_of(seed: int, index: int, train_twins: bool = False) -> tuple[Scene, np.random.Generator]:
    """Return the scene of clip ``index``, and the random generator for its pixels and captions."""
    twin = twin_of(index, train_twins)
    generator = np.random.default_rng([seed, index if twin is None else min(index, twin)])
    events = EVENTS if twin is None else [event for event in RELATIONS if event not in SYMMETRIC]
    event = str(generator.choice(events))
    things = choose_objects(generator, event)
    if twin is not None and index > twin:
        things[0], things[1] = things[1], things[0]
    while not place_objects(generator, event, things):
        pass
    return Scene(event=event, things=things), generator


def choose_objects(generator: np.random.Generator, event: str) -> list[Thing]:
    """Draw two to four objects that differ in colour or shape."""
    things: list[Thing] = []
    count = int(generator.integers(2, 5))
    for label in generator.permutation(len(LABELS)):
        colour, shape = LABELS[label].split()
        if event == "spins" and not things and shape == "circle":
            continue
        size = "small" if event == "grows" and not things else str(generator.choice(list(SIZES)))
        size = "large" if event == "shrinks" and not things else size
        things.append(Thing(colour=colour, shape=shape, size=size, radius=float(generator.uniform(*SIZES[size]))))
        if len(things) == count:
            return things
    raise AssertionError("there are more labels than objects")


def place_objects(generator: np.random.Generator, event: str, things: list[Thing]) -> bool:
    """Set the path of every object. Return False if they do not fit in the frame; then try again."""
    actors = things[: 2 if event in RELATIONS else 1]
    for thing in things:
        thing.angle = np.full(FRAMES, generator.uniform(-0.2, 0.2))
    move_actors(generator, event, *actors)
    reach = [thing.radius * thing.scale.max() for thing in actors]
    low = np.min([thing.path.min(0) - r for thing, r in zip(actors, reach, strict=True)], axis=0)
    high = np.max([thing.path.max(0) + r for thing, r in zip(actors, reach, strict=True)], axis=0)
    if (high - low > 0.98).any():
        return False
    shift = generator.uniform(0.01 - low, 0.99 - high)
    for thing in actors:
        thing.path = thing.path + shift
    time = np.linspace(0, 1, FRAMES)[:, None]
    for number, thing in enumerate(things[len(actors) :], start=len(actors)):
        for _ in range(200):
            begin = generator.uniform(thing.radius, 1 - thing.radius, 2)
            drift = generator.uniform(-0.05, 0.05, 2) * generator.integers(0, 2)  # half of the objects stand still
            thing.path = begin + drift * time
            inside = thing.path.min() > thing.radius and thing.path.max() < 1 - thing.radius
            if inside and all(apart(thing, other) for other in things[:number]):
                break
        else:
            return False
    return True


def apart(a: Thing, b: Thing) -> bool:
    """Return whether two objects keep a distance in all frames."""
    distance = np.linalg.norm(a.path - b.path, axis=1)
    return bool((distance > a.radius * a.scale + b.radius * b.scale + 0.02).all())


def move_actors(generator: np.random.Generator, event: str, a: Thing, b: Thing | None = None) -> None:
    """Set the paths of the event's participants, around the origin."""
    time = np.linspace(0, 1, FRAMES)
    still = np.zeros(FRAMES)
    if b is None:
        a.path = np.zeros((FRAMES, 2))
        way = generator.uniform(0.4, 0.6) * (time - 0.5)
        match event:
            case "moves left" | "moves right":
                a.path[:, 0] = way if event == "moves right" else -way
            case "moves up" | "moves down":
                a.path[:, 1] = way if event == "moves down" else -way
            case "spins":
                a.angle = a.angle + generator.choice([-1, 1]) * generator.uniform(1, 1.5) * 2 * np.pi * time
            case "grows":
                a.scale = 1 + generator.uniform(0.8, 1.2) * time
            case "shrinks":
                a.scale = 1 - generator.uniform(0.45, 0.6) * time
            case "blinks":
                a.visible = (time * generator.integers(3, 6) + generator.uniform()) % 1 < 0.6
        return
    touch = a.radius + b.radius
    far = generator.uniform(0.3, 0.4)
    # paths: x of a, y of a, x of b, y of b, before the rotation to a random direction.
    match event:
        case "pushes":
            contact = generator.uniform(0.3, 0.45)
            along = far * np.clip((time - contact) / (1 - contact), 0, 1)
            coming = 0.3 * np.clip(1 - time / contact, 0, 1)
            paths = along - touch - coming, still, along, still
        case "follows":
            gap = touch + generator.uniform(0.04, 0.1)
            speed, bend = far + 0.1, generator.uniform(0.03, 0.07)
            ahead = speed * time
            paths = ahead - gap, bend * np.sin(8 * (ahead - gap)), ahead, bend * np.sin(8 * ahead)
        case "orbits":
            turn = generator.uniform(0, 2 * np.pi) + generator.choice([-1, 1]) * 2 * np.pi * time
            radius = touch + generator.uniform(0.03, 0.08)
            paths = radius * np.cos(turn), radius * np.sin(turn), still, still
        case "jumps over":
            leap = np.clip((time - 0.15) / 0.7, 0, 1)
            reach = touch + 0.04
            paths = reach * (2 * leap - 1), -(touch + 0.08) * 4 * leap * (1 - leap), still, still
        case "passes behind":
            paths = (touch + 0.1) * (2 * time - 1), still, still, still
        case "swaps with":
            swing = np.pi * np.clip((time - 0.1) / 0.8, 0, 1)
            radius = touch / 2 + generator.uniform(0.06, 0.12)
            paths = (
                -radius * np.cos(swing),
                radius * np.sin(swing),
                radius * np.cos(swing),
                -radius * np.sin(swing),
            )
        case "approaches" | "leaves":
            way = far * (1 - time if event == "approaches" else time)
            paths = -(touch + 0.02 + way), still, still, still
    # A jump goes upwards. Any other event gets a random direction.
    turn = generator.choice([0, np.pi]) if event == "jumps over" else generator.uniform(0, 2 * np.pi)
    across = np.array([np.cos(turn), np.sin(turn)])
    down = np.array([0.0, 1.0]) if event == "jumps over" else np.array([-np.sin(turn), np.cos(turn)])
    a.path = paths[0][:, None] * across + paths[1][:, None] * down
    b.path = paths[2][:, None] * across + paths[3][:, None] * down


def describe(scene: Scene, generator: np.random.Generator) -> tuple[str, ...]:
    """Return CAPTIONS captions of a scene, the simplest first."""
    templates = {**MOTIONS, **RELATIONS}[scene.event]

    def name(thing: Thing) -> str:
        article, size = generator.choice(["a", "the"]), generator.choice(["", f"{thing.size} "])
        return f"{article} {size}{thing.label}"

    plain = {role: f"a {thing.label}" for role, thing in zip("ab", scene.things, strict=False)}
    captions = [templates[0].format(**plain)]
    for template in generator.permutation(templates[1:])[: CAPTIONS - 1]:
        captions.append(str(template).format(a=name(scene.things[0]), b=name(scene.things[1])))
    return tuple(captions)


def texture(generator: np.random.Generator, size: int) -> np.ndarray:
    """Return a low-contrast background, (size, size, 3) float."""
    image = generator.uniform(70, 170) + generator.normal(0, 8, 3)[None, None]
    for cells, contrast in ((3, 18), (12, 10)):
        coarse = Image.fromarray(generator.normal(0, contrast, (cells, cells)).astype(np.float32))
        image = image + np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))[..., None]
    if generator.integers(0, 2):
        y, x = np.mgrid[:size, :size] / size
        turn, waves = generator.uniform(0, np.pi), generator.uniform(4, 14)
        stripes = np.sin(2 * np.pi * waves * (x * np.cos(turn) + y * np.sin(turn)))
        image = image + generator.uniform(4, 14) * stripes[..., None]
    return image


def draw(
    scene: Scene, background: np.ndarray, generator: np.random.Generator
) -> Iterator[tuple[np.ndarray, list[list[int] | None]]]:
    """Yield FRAMES images, (size, size, 3) uint8, each with the boxes of the objects: xyxy pixels or None if hidden."""
    size = len(background)
    noise = generator.uniform(2, 7)
    tints = [np.array(COLOURS[thing.colour]) + generator.normal(0, 9, 3) for thing in scene.things]
    # Later objects cover earlier ones. The agent is drawn last, except when it passes behind.
    order = range(len(scene.things)) if scene.event == "passes behind" else range(len(scene.things))[::-1]
    for frame in range(FRAMES):
        image = background.copy()
        drawn: dict[int, tuple[int, list[int]]] = {}  # object -> its area in pixels and its box
        topmost = np.full((size, size), -1, np.int8)  # object that each pixel shows
        for index in order:
            thing = scene.things[index]
            if not thing.visible[frame]:
                continue
            reach = thing.radius * thing.scale[frame] * size
            centre = thing.path[frame] * size
            left, top = np.maximum(0, np.floor(centre - reach - 1)).astype(int)
            right, bottom = np.minimum(size, np.ceil(centre + reach + 1)).astype(int)
            y, x = np.mgrid[top:bottom, left:right] + 0.5
            cover = coverage(thing.shape, x - centre[0], y - centre[1], reach, thing.angle[frame])
            patch = image[top:bottom, left:right]
            patch += cover[..., None] * (tints[index] - patch)
            inside = cover > 0.5
            topmost[top:bottom, left:right][inside] = index
            rows, columns = np.nonzero(inside)
            edges = [left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1]
            drawn[index] = (np.count_nonzero(inside), [int(edge) for edge in edges])
        boxes: list[list[int] | None] = [None] * len(scene.things)
        for index, (area, box) in drawn.items():
            if np.count_nonzero(topmost == index) >= IN_SIGHT * area:
                boxes[index] = box
        image += generator.normal(0, noise, image.shape)
        yield image.clip(0, 255).astype(np.uint8), boxes


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Return the share of each pixel that a shape covers, in [0, 1]. ``radius`` is that of its circumscribed circle."""

    def polygon(corners: int, turn: float) -> np.ndarray:  # signed distance to the nearest side; negative inside
        sides = turn + 2 * np.pi * np.arange(corners) / corners
        reach = radius * np.cos(np.pi / corners)
        return np.max([x * np.cos(side) + y * np.sin(side) - reach for side in sides], axis=0)

    match shape:
        case "circle":
            distance = np.hypot(x, y) - radius
        case "square":
            distance = polygon(4, angle)
        case "triangle":
            distance = polygon(3, angle + np.pi / 2)
        case _:  # a star with six points
            distance = np.minimum(polygon(3, angle + np.pi / 2), polygon(3, angle - np.pi / 2))
    return np.clip(0.5 - distance, 0, 1)


def encode(path: Path, frames: Iterator[np.ndarray], size: int) -> None:
    """Write an H.264 file. It is renamed to its final name when it is complete."""
    partial = path.with_name(f".{path.name}.partial")
    with av.open(str(partial), "w", format="mp4") as container:
        # With x264's macroblock tree, equal frames occasionally gave different files.
        options = {"crf": "23", "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    partial.replace(path)
