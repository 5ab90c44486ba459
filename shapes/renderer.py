"""Shapes, the embedded data set: short H.264 clips in which coloured shapes do things, alone or to one another.

For trying amex, and for comparing models, without downloading anything. Every clip has one event: a motion of one
object, or a relation between two; the others stand by. For validation and testing clips come in pairs, and in most of
them the second is the first with the roles exchanged ("a red circle pushes a blue square", "a blue square pushes a red
circle"), so that a model that only knows which objects there are, and that there was a push, is right half of the time.

Knows how to draw; what to do with the clips is told by their manifest, whose extras hold the event and all boxes.
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
CAPTIONS = 3  # a clip
COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 255),
    "yellow": (241, 196, 15),
    "purple": (142, 68, 173),
}
SHAPES = ("circle", "square", "triangle", "star")
SIZES = {"small": (0.065, 0.08), "large": (0.11, 0.13)}  # radius, as a fraction of the frame's side
# What a detector of these shapes tells apart.
LABELS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
# Below this share of its area in sight, an object has no box.
IN_SIGHT = 0.25

# Ways to say what happens, the plainest first. {a} does it, to {b} if there is one.
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
    """An object of a scene. Lengths are fractions of the frame's side, y points down.

    Attributes:
        path: (FRAMES, 2) where its middle is.
        scale: (FRAMES,) factors of its radius.
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
    """An event and the things in sight, those that take part in it first."""

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
    """Writes ``clips`` videos below ``folder/videos`` and ``folder/manifest.jsonl``; returns the manifest's path.

    Of ten clips in a row seven are for training, one for validation and two for testing. The same seed and size give
    the same clip at every index, however many there are. Files that are there already are kept.

    Args:
        size: of the frames, in pixels, both sides; even, as H.264 wants it.
        train_twins: draw most training clips in pairs with the roles exchanged too, as those for evaluation are. These
            are other clips than without, under other names.
        progress: called after each clip with how many are done.

    Raises:
        ManifestError: if the size is none that shapes can be drawn and encoded in.
    """
    if size < 32 or size % 2:
        raise ManifestError(f"shapes need frames of an even number of pixels, at least 32, got {size}")
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
            "boxes": [boxes for _, boxes in drawn],  # one list a frame, in the order of objects; null: not in sight
        }
        if (twin := twin_of(index, train_twins)) is not None:
            extras["swapped"] = clip_name(seed, twin, train_twins)
        split = ("train",) * 7 + ("val",) + ("test",) * 2
        captions = describe(scene, generator)
        return Clip(clip_id=name, video=name, split=split[index % 10], captions=captions, extras=extras)

    made = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # NumPy and x264 let other threads run
        for clip in pool.map(make, range(clips)):
            made.append(clip)
            progress(len(made))
    write_manifest(made, folder / "manifest.jsonl")
    return folder / "manifest.jsonl"


def clip_name(seed: int, index: int, train_twins: bool = False) -> str:
    return f"{'twins' if train_twins else 'shapes'}_{seed}_{index:05d}.mp4"


def twin_of(index: int, train_twins: bool = False) -> int | None:
    """The clip of the same split that shows the same with the roles exchanged. Every third pair is of other clips."""
    block, place = divmod(index, 10)
    if place < 7:  # pairs of neighbours; the seventh stays alone
        paired = train_twins and place < 6 and (block + place // 2) % 3 != 2
        return index + (1 if place % 2 == 0 else -1) if paired else None
    if (block // 2 if place == 7 else block) % 3 == 2:
        return None
    if place == 7:  # one of ten is for validation: its twin is among the next ten, or the last
        return index + (10 if block % 2 == 0 else -10)
    return index + 1 if place == 8 else index - 1


def scene_of(seed: int, index: int, train_twins: bool = False) -> tuple[Scene, np.random.Generator]:
    """What clip ``index`` shows, and the generator with which to draw and describe it."""
    twin = twin_of(index, train_twins)
    generator = np.random.default_rng([seed, index if twin is None else min(index, twin)])
    events = EVENTS if twin is None else [event for event in RELATIONS if event not in SYMMETRIC]
    event = str(generator.choice(events))
    things = cast(generator, event)
    if twin is not None and index > twin:
        things[0], things[1] = things[1], things[0]
    while not stage(generator, event, things):
        pass
    return Scene(event=event, things=things), generator


def cast(generator: np.random.Generator, event: str) -> list[Thing]:
    """Two to four things that differ in colour or shape."""
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
    raise AssertionError("there are more labels than things")


def stage(generator: np.random.Generator, event: str, things: list[Thing]) -> bool:
    """Gives every thing its path; False if they did not fit into the frame this time."""
    actors = things[: 2 if event in RELATIONS else 1]
    for thing in things:
        thing.angle = np.full(FRAMES, generator.uniform(-0.2, 0.2))
    play(generator, event, *actors)
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
            drift = generator.uniform(-0.05, 0.05, 2) * generator.integers(0, 2)  # half of them stand still
            thing.path = begin + drift * time
            inside = thing.path.min() > thing.radius and thing.path.max() < 1 - thing.radius
            if inside and all(apart(thing, other) for other in things[:number]):
                break
        else:
            return False
    return True


def apart(one: Thing, other: Thing) -> bool:
    """Whether two things never come near each other."""
    distance = np.linalg.norm(one.path - other.path, axis=1)
    return bool((distance > one.radius * one.scale + other.radius * other.scale + 0.02).all())


def play(generator: np.random.Generator, event: str, a: Thing, b: Thing | None = None) -> None:
    """Paths of the actors around the origin."""
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
    # x of a, y of a, x of b, y of b, in a frame of the event's own.
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
    # Up is up in a jump; anything else may happen in any direction.
    turn = generator.choice([0, np.pi]) if event == "jumps over" else generator.uniform(0, 2 * np.pi)
    across = np.array([np.cos(turn), np.sin(turn)])
    down = np.array([0.0, 1.0]) if event == "jumps over" else np.array([-np.sin(turn), np.cos(turn)])
    a.path = paths[0][:, None] * across + paths[1][:, None] * down
    b.path = paths[2][:, None] * across + paths[3][:, None] * down


def describe(scene: Scene, generator: np.random.Generator) -> tuple[str, ...]:
    """CAPTIONS sentences, the plainest way of saying it first."""
    ways = {**MOTIONS, **RELATIONS}[scene.event]

    def name(thing: Thing) -> str:
        article, size = generator.choice(["a", "the"]), generator.choice(["", f"{thing.size} "])
        return f"{article} {size}{thing.label}"

    plain = {role: f"a {thing.label}" for role, thing in zip("ab", scene.things, strict=False)}
    captions = [ways[0].format(**plain)]
    for way in generator.permutation(ways[1:])[: CAPTIONS - 1]:
        captions.append(str(way).format(a=name(scene.things[0]), b=name(scene.things[1])))
    return tuple(captions)


def texture(generator: np.random.Generator, size: int) -> np.ndarray:
    """A dull background: (size, size, 3) float."""
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
    """Yields FRAMES times an image, (size, size, 3) uint8, and the box of each thing in it, xyxy pixels or None."""
    size = len(background)
    noise = generator.uniform(2, 7)
    tints = [np.array(COLOURS[thing.colour]) + generator.normal(0, 9, 3) for thing in scene.things]
    # Whoever passes behind is drawn first.
    order = range(len(scene.things)) if scene.event == "passes behind" else range(len(scene.things))[::-1]
    for frame in range(FRAMES):
        image = background.copy()
        own, seen = {}, np.full((size, size), -1, np.int8)
        for index in order:
            thing = scene.things[index]
            if not thing.visible[frame]:
                continue
            reach = thing.radius * thing.scale[frame] * size
            middle = thing.path[frame] * size
            left, top = np.maximum(0, np.floor(middle - reach - 1)).astype(int)
            right, bottom = np.minimum(size, np.ceil(middle + reach + 1)).astype(int)
            y, x = np.mgrid[top:bottom, left:right] + 0.5
            cover = coverage(thing.shape, x - middle[0], y - middle[1], reach, thing.angle[frame])
            patch = image[top:bottom, left:right]
            patch += cover[..., None] * (tints[index] - patch)
            inside = cover > 0.5
            seen[top:bottom, left:right][inside] = index
            rows, columns = np.nonzero(inside)
            edges = [left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1]
            own[index] = (np.count_nonzero(inside), [int(edge) for edge in edges])
        boxes = [
            own[index][1] if index in own and np.count_nonzero(seen == index) >= IN_SIGHT * own[index][0] else None
            for index in range(len(scene.things))
        ]
        image += generator.normal(0, noise, image.shape)
        yield image.clip(0, 255).astype(np.uint8), boxes


def coverage(shape: str, x: np.ndarray, y: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """How much of each pixel a shape covers, in [0, 1]; ``radius`` is of the circle around it."""

    def polygon(corners: int, turn: float) -> np.ndarray:  # signed distance to the nearest side, inside below zero
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
    """Writes an H.264 file, under its name only when it is whole."""
    partial = path.with_name(f".{path.name}.partial")
    with av.open(str(partial), "w", format="mp4") as container:
        # With x264's macroblock tree, equal frames gave unequal files, now and then, in one process.
        options = {"crf": "23", "preset": "veryfast", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(FPS), options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for image in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    partial.replace(path)
