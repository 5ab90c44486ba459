"""Decode video files into windows of frames: true timestamps, sampling, transforms. No networks.

    Feeders(4).run(videos)  # yields the events of ``requests.py``

A ``Video`` is a file with its ``SamplingRequest``s. ``Feeders`` sends each video to a ``feeder`` process. There
``decoders`` yields frames, ``sampling`` selects them, ``transform`` resizes and crops them, and ``memory`` shares the
windows with the worker.
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
