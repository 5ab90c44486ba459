"""Streams of objects: boxes of any MMDetection detector, and the detector's own features pooled at these boxes.

A row is one frame. The features are computed at exactly the stored boxes. For a two-stage detector they are the shared
layers of the box head before classification, for a one-stage detector the mean of the neck's features in the box.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import AmexError, needs
from ...shapes import FOLDER as SHAPES
from ..video import Sampling
from .kinds import ALIASES
from .mmdetection import use_mmdetection
from .numerics import use_float32
from .settings import check_name, compute_rules, decoder_rules, parse_sampling
from .weights import Packaged, Published, cached, calibrate, check_weights, digest, draw, fill, noise, weights_file

SHAPES_DETECTOR_CONFIG = SHAPES / "shapes_detector.py"
SHAPES_DETECTOR = Packaged(
    path=SHAPES / "shapes_detector.pth",
    sha256="37d7139d367e9c63ec6e061f0e5b3b79c3b82ca4152a0586b7e6de754d35b0cf",
    licence="Apache-2.0",
    source="Shapes, amex",
)
DEFAULT_SAMPLING = Sampling(fps=1, frames=1, stride=1, at="shown")
# Boxes per frame, as in bottom-up attention.
DEFAULT_BOXES = 36
# Bins per axis of the RoIAlign for one-stage detectors, which have no box head.
BINS = 7


@dataclass(frozen=True, kw_only=True)
class ObjectsPlan:
    """A stream of objects. See ``windows.WindowPlan`` for the common attributes.

    Attributes:
        config: name of the configuration, or stem of its file.
        model: the model's configuration with the score threshold, without settings for training.
        pipeline: MMDetection's pipeline that prepares an image.
        boxes: maximum number of boxes per frame; the highest scores are kept.
        classes: labels of the boxes to keep; all if empty.
        labels: the names of all classes.
        dim: length of a feature.
    """

    name: str
    config: str
    model: dict[str, Any]
    pipeline: list[dict[str, Any]]
    sampling: Sampling
    boxes: int
    classes: tuple[int, ...]
    labels: tuple[str, ...]
    dim: int
    weights: str
    weights_sha256: str
    precision: str
    batch_size: int
    decoder: str = "auto"
    deterministic: bool = False

    @property
    def transform(self) -> None:
        """None: the detector takes frames at their own size."""
        return None

    def encoder(self, device: str) -> Detector:
        """Return the detector on a device, loaded once per process. Raise AmexError if its weights have changed."""
        return cached((json.dumps(self.spec), self.weights, device), lambda: self._load(device))

    def _load(self, device: str) -> Detector:
        check_weights(self.weights, self.weights_sha256, self.name)
        return Detector(self, device)

    @property
    def spec(self) -> dict[str, Any]:
        """Everything that decides the stream's numbers; the store fingerprints it."""
        spec = {
            "network": f"mmdet:{self.config}",
            "weights_sha256": self.weights_sha256,
            "sampling": self.sampling.spec,
            "model": self.model,
            "pipeline": self.pipeline,
            "classes": self.classes,
            "output": {
                "shape": [self.boxes, self.dim],
                "dtype": "float16",
                "labels": self.labels,
                "arrays": {
                    "boxes": {"shape": [self.boxes, 4], "dtype": "float32"},
                    "scores": {"shape": [self.boxes], "dtype": "float32"},
                    "labels": {"shape": [self.boxes], "dtype": "int32"},
                    "counts": {"shape": [], "dtype": "int32"},
                    "frame_size": {"shape": [2], "dtype": "int32"},
                },
            },
            "compute": compute_rules(self.deterministic, precision=self.precision),
            "decoder": decoder_rules(self.decoder),
        }
        return json.loads(json.dumps(spec))


def plan_objects(
    name: str,
    *,
    config: str,
    weights: str,
    precision: str,
    options: Mapping[str, str],
    batch_size: int,
) -> ObjectsPlan:
    """Plan a stream of objects.

    Args:
        name: of the stream.
        config: name of a configuration packaged with MMDetection, or a file.
        weights: ``default``, a path or ``random:SEED``.
        options: values as text: fps, count, at, boxes, score, classes.

    Raises:
        AmexError: if the detector cannot be built or loaded, or an option is unknown or out of range.
    """
    use_mmdetection()
    file = find_config(config)
    parsed = read_config(file)
    parsers = {
        "boxes": int,
        "score": float,
        "classes": lambda text: tuple(part.strip() for part in text.split(",")),
    }
    sampling, chosen = parse_sampling(name, DEFAULT_SAMPLING, options, parsers, keys=("fps", "count", "at"))
    boxes = chosen.get("boxes", DEFAULT_BOXES)
    if boxes < 1:
        raise AmexError(f"stream {name}: boxes must be at least 1, got {boxes}")
    labels = class_names(parsed)
    classes = tuple(
        labels.index(check_name(wanted, labels, f"class of {config}:")) for wanted in chosen.get("classes", ())
    )
    model = inference_model(parsed, chosen.get("score"), boxes)
    location = weights_file(weights, published(file))
    plan = ObjectsPlan(
        name=name,
        config=file.stem,
        model=model,
        pipeline=image_pipeline(parsed),
        sampling=sampling,
        boxes=boxes,
        classes=classes,
        labels=labels,
        dim=feature_length(build(model), config),
        weights=location,
        weights_sha256=digest(location),
        precision=precision,
        batch_size=batch_size,
    )
    check_detector(plan)
    return plan


def check_detector(plan: ObjectsPlan) -> None:
    """Run the detector on a small blank frame. Raise AmexError before a run starts if it cannot be used."""
    from mmdet.structures import DetDataSample

    side = 128
    size = {"ori_shape": (side, side), "img_shape": (side, side), "scale_factor": (1.0, 1.0)}
    frame = Resized(torch.zeros(3, side, side, dtype=torch.uint8), DetDataSample(metainfo=size), (side, side))
    try:
        Detector(dataclasses.replace(plan, weights="random:0", precision="fp32"), "cpu").rows([frame])
    except AmexError:
        raise
    except Exception as error:  # the user's configuration may raise anything
        raise AmexError(f"{plan.config} cannot be used: {type(error).__name__}: {error}") from error


def find_config(config: str) -> Path:
    """Return the file of a configuration: the given file, or one packaged with MMDetection or amex.

    Raises:
        AmexError: if there is no such configuration.
    """
    with needs("objects", f"the detector {config}"):
        import mmdet

    if config.endswith(".py"):
        if not Path(config).is_file():
            raise AmexError(f"the MMDetection configuration {config} does not exist")
        return Path(config)
    config = ALIASES.get(config, config)
    if config == SHAPES_DETECTOR_CONFIG.stem:
        return SHAPES_DETECTOR_CONFIG
    files = {path.stem: path for path in (Path(mmdet.__file__).parent / ".mim" / "configs").glob("*/*.py")}
    return files[check_name(config, files, "MMDetection configuration", list_all=False)]


def read_config(file: Path) -> Any:
    """Read a configuration. Raise AmexError if it cannot be read or does not describe a detector."""
    from mmengine.config import Config

    try:
        config = Config.fromfile(file)
    except Exception as error:  # configurations are programs
        raise AmexError(f"cannot read the MMDetection configuration {file}: {type(error).__name__}: {error}") from error
    dataset = config.get("test_dataloader", {}).get("dataset", {})
    if not config.get("model", {}).get("type") or not (dataset.get("pipeline") or config.get("test_pipeline")):
        raise AmexError(f"{file} does not describe a detector: it lacks model, or test_dataloader with a pipeline")
    return config


def published(file: Path) -> Published | Packaged | None:
    """Return the published checkpoint of a packaged configuration. Its name ends with digits of its sha256."""
    if file == SHAPES_DETECTOR_CONFIG:
        return SHAPES_DETECTOR
    index = file.parent / "metafile.yml"
    if not index.is_file():
        return None
    import yaml

    for entry in yaml.safe_load(index.read_text()).get("Models", ()):
        if Path(entry["Config"]).name == file.name and "Weights" in entry:
            url = entry["Weights"]
            sha256 = url.rsplit("-", 1)[-1].removesuffix(".pth")
            return Published(
                url=url, sha256=sha256, licence="Apache-2.0 (MMDetection)", source="MMDetection's model zoo"
            )
    return None


def class_names(config: Any) -> tuple[str, ...]:
    """Return the class names of a configuration's test data, or the numbers of the classes if there are none."""
    from mmdet.registry import DATASETS

    dataset = config.test_dataloader.dataset
    names = dataset.get("metainfo", {}).get("classes")
    if names is None:
        kind = DATASETS.module_dict.get(dataset.get("type", "").split(".")[-1])
        names = getattr(kind, "METAINFO", {}).get("classes")
    head = config.model.get("roi_head", config.model).get("bbox_head", {})
    count = (head[-1] if isinstance(head, list) else head).get("num_classes")
    if names is None or (count is not None and count != len(names)):
        names = map(str, range(count or 0))
    return tuple(names)


def inference_model(config: Any, score: float | None, boxes: int) -> dict[str, Any]:
    """Return a model's configuration without settings for training, with the score threshold and enough boxes."""

    def without_training(value: Any) -> Any:
        if isinstance(value, dict):
            settings = {key: entry for key, entry in value.items() if key not in ("init_cfg", "pretrained")}
            return {key: without_training(entry) for key, entry in settings.items()}
        return type(value)(map(without_training, value)) if isinstance(value, list | tuple) else value

    model = without_training(config.model.to_dict())
    model["train_cfg"] = None
    test = model.get("test_cfg") or {}
    final = test.get("rcnn", test)
    if score is not None:
        final["score_thr"] = score
    if "max_per_img" in final:
        final["max_per_img"] = max(final["max_per_img"], boxes)
    return model


def image_pipeline(config: Any) -> list[dict[str, Any]]:
    """Return the test pipeline without the steps that load files and annotations."""
    dataset = config.test_dataloader.dataset
    steps = [step.to_dict() for step in dataset.get("pipeline") or config.test_pipeline]
    steps = [step for step in steps if not step["type"].split(".")[-1].startswith("Load")]
    steps[-1]["meta_keys"] = ("ori_shape", "img_shape", "scale_factor")
    return [{"type": "mmdet.LoadImageFromNDArray"}, *steps]


def build(model: dict[str, Any]) -> nn.Module:
    """Build the detector of a model's configuration with random weights."""
    use_mmdetection()
    from mmdet.registry import MODELS
    from mmengine.config import ConfigDict

    try:
        return MODELS.build(ConfigDict(copy.deepcopy(model))).eval()
    except Exception as error:  # the user's configuration may raise anything
        raise AmexError(f"cannot build the detector {model.get('type')}: {type(error).__name__}: {error}") from error


def feature_length(model: nn.Module, config: str) -> int:
    """Return the length of a RoI feature. Raise AmexError if amex cannot pool features of this detector."""
    from mmdet.models import BBoxHead, ConvFCBBoxHead, SingleStageDetector, TwoStageDetector

    if isinstance(model, TwoStageDetector) and model.with_roi_head:
        head = last(model.roi_head.bbox_head)
        if isinstance(head, ConvFCBBoxHead):
            return head.shared_out_channels
        if type(head) is BBoxHead:
            return head.in_channels
    elif isinstance(model, SingleStageDetector) and hasattr(model.bbox_head, "prior_generator"):
        channels = model.bbox_head.in_channels
        if isinstance(channels, int):
            return channels
    raise AmexError(
        f"{config}: cannot pool features of a {type(model).__name__}; choose a two-stage detector with a fully "
        "connected box head, or a one-stage detector whose levels have the same number of channels"
    )


def last(module: nn.Module) -> nn.Module:
    """Return the last stage of a cascade, or the module itself if it is not a cascade."""
    return module[-1] if isinstance(module, nn.ModuleList) else module


@dataclass(frozen=True)
class Resized:
    """A resized frame: pixels (3, height, width) uint8, and MMDetection's sample with the scale factor."""

    pixels: torch.Tensor
    sample: Any
    frame_size: tuple[int, int]  # width, height

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.pixels.shape)


class Detector:
    """A detector on a device. Batch-norms of backbone and neck are folded, and both run in the plan's precision.

    The other parts compute coordinates and always run in float32.
    """

    def __init__(self, plan: ObjectsPlan, device: str) -> None:
        use_mmdetection()
        from mmcv.cnn import fuse_conv_bn
        from mmcv.transforms import Compose
        from mmdet.models import SingleRoIExtractor, TwoStageDetector

        use_float32()
        self.plan = plan
        self.device = torch.device("cpu")  # device of the windows: MMDetection resizes them on the CPU
        self.computes_on = torch.device(device)
        if plan.weights.startswith("random:"):
            self.model = draw(lambda: build(plan.model), plan.weights)
            calibrate(self.model, lambda: self.model.extract_feat(noise(3, 224, 224)))
        else:
            self.model = fill(build(plan.model), Path(plan.weights)).eval()
        # Heads are not fused: some share convolutions between levels that have their own batch-norms.
        for part in ("backbone", "neck"):
            if hasattr(self.model, part):
                fuse_conv_bn(getattr(self.model, part))
        self.model.to(self.computes_on)
        self.model.backbone.to(memory_format=torch.channels_last)
        self.two_stage = isinstance(self.model, TwoStageDetector)
        if self.two_stage:
            self.extractor = last(self.model.roi_head.bbox_roi_extractor)
        else:
            strides = [stride[0] for stride in self.model.bbox_head.prior_generator.strides]
            layer = {"type": "RoIAlign", "output_size": BINS, "sampling_ratio": 2}
            self.extractor = SingleRoIExtractor(roi_layer=layer, out_channels=plan.dim, featmap_strides=strides)
        self.pipeline = Compose(plan.pipeline)

    def resize(self, image: np.ndarray) -> Resized:
        """Resize and pad a frame, (height, width, 3) uint8 RGB, with MMDetection."""
        height, width = image.shape[:2]
        packed = self.pipeline({"img": np.ascontiguousarray(image[..., ::-1])})
        return Resized(packed["inputs"], packed["data_samples"], (width, height))

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Detect objects.

        Args:
            windows: (windows, 1, height, width, 3) uint8 RGB on the CPU.

        Returns:
            The arrays of the spec, with one row per window. Unused boxes are 0, with label -1.
        """
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # OpenCV releases the GIL
            return self.rows(list(threads.map(self.resize, windows[:, 0].numpy())))

    @torch.inference_mode()
    def rows(self, frames: Sequence[Resized]) -> dict[str, torch.Tensor]:
        """Return the arrays of the spec for frames of one shape."""
        features, samples = self.features(frames)
        detections = [
            self.select_boxes(instances, frame)
            for instances, frame in zip(self.detect(features, samples), frames, strict=True)
        ]
        pooled = self.pool(features, frames, [boxes for boxes, _, _ in detections])
        rows = len(frames)
        arrays = {
            "values": np.zeros((rows, self.plan.boxes, self.plan.dim), np.float32),
            "boxes": np.zeros((rows, self.plan.boxes, 4), np.float32),
            "scores": np.zeros((rows, self.plan.boxes), np.float32),
            "labels": np.full((rows, self.plan.boxes), -1, np.int32),
            "counts": np.array([len(boxes) for boxes, _, _ in detections], np.int32),
            "frame_size": np.array([frame.frame_size for frame in frames], np.int32),
        }
        for row, ((boxes, scores, labels), values) in enumerate(zip(detections, pooled, strict=True)):
            for name, array in (("values", values), ("boxes", boxes), ("scores", scores), ("labels", labels)):
                arrays[name][row, : len(boxes)] = array.cpu().numpy()
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def features(self, frames: Sequence[Resized]) -> tuple[tuple[torch.Tensor, ...], list[Any]]:
        """Return the neck's levels for frames of one shape, float32, and MMDetection's samples."""
        inputs = {"inputs": [f.pixels for f in frames], "data_samples": [copy.copy(f.sample) for f in frames]}
        data = self.model.data_preprocessor(inputs, False)
        with self.autocast():
            levels = self.model.extract_feat(data["inputs"].contiguous(memory_format=torch.channels_last))
        return tuple(level.float() for level in levels), data["data_samples"]

    def autocast(self) -> torch.autocast:
        """Return the context of the plan's precision."""
        dtype = torch.float16 if self.plan.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.computes_on.type, dtype=dtype, enabled=self.plan.precision != "fp32")

    def detect(self, features: tuple[torch.Tensor, ...], samples: list[Any]) -> list[Any]:
        """Return the instances of each frame, with boxes in coordinates of the resized frame."""
        if not self.two_stage:
            return self.model.bbox_head.predict(features, samples, rescale=False)
        metas = [sample.metainfo for sample in samples]
        with self.autocast():
            outputs = self.model.rpn_head(features)
        outputs = [[level.float() for level in output] for output in outputs]
        proposals = self.model.rpn_head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=False)
        head = self.model.roi_head
        return head.predict_bbox(features, metas, proposals, head.test_cfg, rescale=False)

    def select_boxes(self, instances: Any, frame: Resized) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Select boxes by class and score.

        Returns:
            Boxes (n, 4) xyxy in pixels of the source frame, scores and labels, by descending score.
        """
        if self.plan.classes:
            classes = torch.tensor(self.plan.classes, device=instances.labels.device)
            instances = instances[torch.isin(instances.labels, classes)]
        instances = instances[instances.scores.argsort(descending=True, stable=True)[: self.plan.boxes]]
        boxes = instances.bboxes / self.scale(frame)
        limits = boxes.new_tensor([*frame.frame_size, *frame.frame_size])
        return boxes.clamp(min=0).minimum(limits), instances.scores, instances.labels

    def pool(
        self, features: tuple[torch.Tensor, ...], frames: Sequence[Resized], boxes: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Pool features at boxes in pixels of the source frames; return (n, dim) float32 for each frame."""
        from mmdet.structures.bbox import bbox2roi

        rois = bbox2roi([box * self.scale(frame) for box, frame in zip(boxes, frames, strict=True)])
        levels = features[: self.extractor.num_inputs]
        if len(rois) == 0:
            return tuple(rois.new_zeros((0, self.plan.dim)) for _ in frames)
        pooled = self.extractor(levels, rois)
        if self.two_stage and self.model.roi_head.with_shared_head:
            pooled = self.model.roi_head.shared_head(pooled)
        pooled = apply_shared_layers(last(self.model.roi_head.bbox_head), pooled) if self.two_stage else pooled
        pooled = pooled if pooled.dim() == 2 else pooled.mean((2, 3))
        return pooled.split([len(box) for box in boxes])

    def scale(self, frame: Resized) -> torch.Tensor:
        """Return the factors that map xyxy from the source frame to the resized frame."""
        return torch.tensor(frame.sample.scale_factor * 2, dtype=torch.float32, device=self.computes_on)


def apply_shared_layers(head: nn.Module, pooled: torch.Tensor) -> torch.Tensor:
    """Apply the layers of a box head that its class and box branches share, to (n, channels, bins, bins)."""
    for conv in getattr(head, "shared_convs", ()):
        pooled = conv(pooled)
    if getattr(head, "num_shared_fcs", 0):
        pooled = head.avg_pool(pooled) if head.with_avg_pool else pooled
        pooled = pooled.flatten(1)
        for layer in head.shared_fcs:
            pooled = head.relu(layer(pooled))
    return pooled
