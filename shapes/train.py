"""Train the two small networks of this folder on a CPU: ``python -m amex.shapes.train --help``.

Draws Shapes, decodes and transforms the clips as extraction does, trains, and evaluates on clips of another seed.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from rich.progress import track
from torch import nn

from ..errors import plural
from ..extract.encoders import PRESETS, normalise
from ..extract.encoders.mmdetection import use_mmdetection
from ..extract.video import Feeders, Sampling, SamplingRequest, Transform, Window
from ..manifests import read_manifest
from . import FOLDER
from .networks import r2plus1d_tiny
from .renderer import COLOURS, EVENTS, FPS, LABELS, make_shapes

TRAIN_SEED, TEST_SEED = 1000, 2000
# Event -> event of the horizontally flipped clip, if they differ.
MIRRORED = {"moves left": "moves right", "moves right": "moves left"}


@click.group()
def main() -> None:
    """Train the networks that are part of amex. Each takes less than an hour on two cores."""


def options(command: click.Command) -> click.Command:
    """Add the options that both commands share."""
    for option in (
        click.option("--work", required=True, type=click.Path(path_type=Path), help="Folder for the drawn clips."),
        click.option("--out", default=FOLDER, type=click.Path(path_type=Path), help="Folder for the weights."),
        click.option("--clips", default=2500, show_default=True, help="Number of training clips."),
        click.option("--test-clips", default=200, show_default=True, help="Number of test clips."),
        click.option("--steps", default=5000, show_default=True, help="Number of batches of 16."),
    ):
        command = option(command)
    return command


def shapes(work: Path, seed: int, clips: int) -> tuple[list, Path]:
    """Draw clips of Shapes, unless they exist; return them and the folder of their videos."""
    folder = work / f"shapes-{seed}"
    manifest = folder / "manifest.jsonl"
    if not manifest.exists() or len(read_manifest(manifest)) != clips:
        with click.progressbar(length=clips, label=f"drawing {plural(clips, 'clip')}") as bar:
            make_shapes(folder, clips=clips, seed=seed, progress=lambda done: bar.update(1))
    return read_manifest(manifest), folder / "videos"


def windows(
    feeders: Feeders, path: Path, sampling: Sampling, transform: Transform | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield the start of each window and its pixels, (frames, height, width, 3), as in extraction."""
    for event in feeders.read(path, [SamplingRequest(None, None, sampling, transform)]):
        if isinstance(event, Window):
            yield event.start, event.pixels.copy()


def save(module: nn.Module, path: Path) -> nn.Module:
    """Write weights in half precision; return the module with these weights, so that the saved ones are evaluated."""
    state = {name: value.half() if value.is_floating_point() else value for name, value in module.state_dict().items()}
    torch.save(state, path)
    module.load_state_dict(state)
    return module.eval()


@main.command()
@options
def clips(work: Path, out: Path, clips: int, test_clips: int, steps: int) -> None:
    """r2plus1d_tiny: recognises the event and the objects of a window, but not their roles."""
    torch.manual_seed(0)
    preset = PRESETS["r2plus1d_tiny"]

    def load(seed: int, count: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        """Return each clip's windows (windows, 3, frames, height, width) float16, and all events and objects."""
        feeders = Feeders()
        drawn, folder = shapes(work, seed, count)
        pixels = []
        for clip in track(drawn, f"decoding seed {seed}"):
            stacks = [stack for _, stack in windows(feeders, folder / clip.video, preset.sampling, preset.transform)]
            pixels.append(normalise(torch.from_numpy(np.stack(stacks)), preset.transform).half())
        events = torch.tensor([EVENTS.index(clip.extras["event"]) for clip in drawn])
        objects = torch.zeros(count, len(LABELS))
        for row, clip in enumerate(drawn):
            for thing in clip.extras["objects"]:
                objects[row, LABELS.index(thing["label"])] = 1
        return pixels, events, objects

    pixels, events, objects = load(TRAIN_SEED, clips)
    mirror = torch.tensor([EVENTS.index(MIRRORED.get(event, event)) for event in EVENTS])
    module = r2plus1d_tiny(len(EVENTS) + len(LABELS))
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for step in track(range(steps), "training"):
        chosen = torch.randint(len(pixels), (16,)).tolist()
        batch = torch.stack([pixels[i][torch.randint(len(pixels[i]), ())] for i in chosen]).float()
        targets = events[chosen]
        flipped = torch.rand(16) < 0.5
        batch[flipped] = batch[flipped].flip(-1)
        targets = torch.where(flipped, mirror[targets], targets)
        batch = batch * torch.empty(16, 1, 1, 1, 1).uniform_(0.8, 1.2) + torch.empty(16, 3, 1, 1, 1).uniform_(-0.1, 0.1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = module(batch).float()
        loss = nn.functional.cross_entropy(scores[:, : len(EVENTS)], targets)
        loss = loss + 4 * nn.functional.binary_cross_entropy_with_logits(scores[:, len(EVENTS) :], objects[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            click.echo(f"{step}: {loss.item():.3f}")
    module = save(module, out / "r2plus1d_tiny.pth")
    report(out / "r2plus1d_tiny.json", measure_clips(module, *load(TEST_SEED, test_clips)))


def measure_clips(
    module: nn.Module, pixels: list[torch.Tensor], events: torch.Tensor, objects: torch.Tensor
) -> dict[str, float]:
    """Return the accuracy of events, and mean average precision over objects and over colours."""
    with torch.inference_mode():
        scores = torch.stack([module(clip.float()).mean(0) for clip in pixels])
    correct = scores[:, : len(EVENTS)].argmax(1) == events
    object_scores = scores[:, len(EVENTS) :]
    by_colour = [array.reshape(len(array), len(COLOURS), -1).amax(2) for array in (object_scores, objects)]
    return {
        "event_accuracy": correct.float().mean().item(),
        "object_mAP": mean_average_precision(object_scores, objects),
        "colour_mAP": mean_average_precision(*by_colour),
        "clips": len(pixels),
    }


def mean_average_precision(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """Return mAP over classes: the mean precision at the rank of each clip that has the class.

    Args:
        scores: (clips, classes).
        truth: (clips, classes), 0 or 1.
    """
    order = scores.argsort(0, descending=True)
    hits = truth.gather(0, order)
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)[:, None]
    return ((precision * hits).sum(0) / hits.sum(0)).mean().item()


@main.command()
@options
def detector(work: Path, out: Path, clips: int, test_clips: int, steps: int) -> None:
    """shapes_detector: detects the shapes with their colours."""
    use_mmdetection()
    from mmdet.evaluation import eval_map
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.config import Config
    from mmengine.optim import OptimWrapper
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    np.random.seed(0)
    sampling = Sampling(fps=2.5, frames=1, stride=1)

    def load(seed: int, count: int) -> list[tuple[torch.Tensor, np.ndarray, np.ndarray]]:
        """Return images, (3, height, width) uint8 BGR as for MMDetection, with their boxes and labels."""
        feeders = Feeders()
        drawn, folder = shapes(work, seed, count)
        images = []
        for clip in track(drawn, f"decoding seed {seed}"):
            labels = [LABELS.index(thing["label"]) for thing in clip.extras["objects"]]
            for start, frames in windows(feeders, folder / clip.video, sampling):
                visible = [
                    (box, label)
                    for box, label in zip(clip.extras["boxes"][round(start * FPS)], labels, strict=True)
                    if box is not None
                ]
                image = torch.from_numpy(frames[0][..., ::-1].copy()).permute(2, 0, 1)
                boxes = np.array([box for box, _ in visible], np.float32).reshape(-1, 4)
                images.append((image, boxes, np.array([label for _, label in visible], np.int64)))
        return images

    def sample(image: torch.Tensor, boxes: np.ndarray, labels: np.ndarray, flip: bool) -> tuple[torch.Tensor, object]:
        height, width = image.shape[1:]
        meta = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
        boxes = torch.from_numpy(boxes)
        if flip:
            image = image.flip(-1)
            boxes = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
        wrapped = DetDataSample(metainfo=meta)
        wrapped.gt_instances = InstanceData(bboxes=boxes, labels=torch.from_numpy(labels))
        return image, wrapped

    config = Config.fromfile(FOLDER / "shapes_detector.py")
    model = MODELS.build(copy.deepcopy(config.model)).train()
    images = load(TRAIN_SEED, clips)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    wrapper = OptimWrapper(optimizer, clip_grad={"max_norm": 10})
    for step in track(range(steps), "training"):
        chosen = torch.randint(len(images), (16,)).tolist()
        batch = [sample(*images[i], flip=bool(torch.rand(()) < 0.5)) for i in chosen]
        losses = model.train_step({"inputs": [b[0] for b in batch], "data_samples": [b[1] for b in batch]}, wrapper)
        schedule.step()
        if step % 100 == 0:
            click.echo(f"{step}: " + ", ".join(f"{name} {float(value):.3f}" for name, value in losses.items()))
    model = save(model, out / "shapes_detector.pth")
    results, truths = [], []
    with torch.inference_mode():
        for image, boxes, labels in track(load(TEST_SEED, test_clips), "measuring"):
            inputs, wrapped = sample(image, boxes, labels, flip=False)
            detections = model.test_step({"inputs": [inputs], "data_samples": [wrapped]})[0].pred_instances
            rows = torch.cat([detections.bboxes, detections.scores[:, None]], dim=1).numpy()
            results.append([rows[detections.labels.numpy() == label] for label in range(len(LABELS))])
            truths.append({"bboxes": boxes, "labels": labels})
    map50, _ = eval_map(results, truths, iou_thr=0.5, logger="silent", nproc=1)
    map75, _ = eval_map(results, truths, iou_thr=0.75, logger="silent", nproc=1)
    report(out / "shapes_detector.json", {"mAP50": float(map50), "mAP75": float(map75), "images": len(results)})


def report(path: Path, metrics: dict) -> None:
    """Print the metrics and write them to a file."""
    metrics = {name: round(value, 4) for name, value in metrics.items()} | {"test_seed": TEST_SEED}
    path.write_text(json.dumps(metrics, indent=1) + "\n")
    click.echo(json.dumps(metrics))


if __name__ == "__main__":
    main()
