"""From a video file to finished windows: decoding with true timestamps, sampling, transforms. Knows no network.

    Feeders(4).run(videos)  # events of ``requests.py``, in the order in which they come

A ``Video`` is a file and the ``SamplingRequest``s of it. ``Feeders`` hands each to a process of ``feeder``, which asks
``decoders`` for frames, ``sampling`` for what to take of them and ``transform`` for their pixels, and answers through
``memory`` that both map.
"""

from .container import Header
from .feeders import Feeders
from .frames import Unreadable
from .nvdec import nvdec_missing
from .requests import Digest, Done, End, Event, Failed, Opened, Restart, SamplingRequest, Video, Window
from .sampling import Sampling
from .transform import Transform, TransformError

__all__ = [
    "Digest",
    "Done",
    "End",
    "Event",
    "Failed",
    "Feeders",
    "Header",
    "Opened",
    "Restart",
    "Sampling",
    "SamplingRequest",
    "Transform",
    "TransformError",
    "Unreadable",
    "Video",
    "Window",
    "nvdec_missing",
]
