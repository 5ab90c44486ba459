"""Default limits and choices of a run. Imports nothing, so that the command line can show them quickly."""

# Minimum number of clips in a group.
PART_CLIPS = 64
# Maximum minutes of video in a part: two to five minutes of work for R(2+1)D-18 on two CPU cores.
PART_MINUTES = 5.0
# The same for GPUs, which need some ten seconds for an hour of video. Larger parts, because a GPU is idle at the end of
# each part, while the last video is decoded and the files are written.
GPU_PART_CLIPS = 1024
GPU_PART_MINUTES = 60.0
# Seconds without a later frame after which a decoder is killed.
DEADLINE = 60.0
# Maximum seconds that a frame may be shown. Slides are shown for less, frames with a damaged duration for more.
LONGEST_FRAME = 600
# Seconds without progress after which a worker is ended. The slowest batch and the write of a part need less.
STALL = 600
# The values of --decoder, and the decoders that each of them tries, in this order. Decoders may give different frames,
# so the streams' specs record the choice: see encoders.settings.decoder_rules.
DECODERS = {
    "auto": ("decord", "pyav sparse", "pyav"),
    "pyav": ("pyav sparse", "pyav"),
    "decord": ("decord", "pyav sparse", "pyav"),
    "nvdec": ("nvdec", "pyav sparse", "pyav"),
}
# The values of --precision.
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
# Maximum default number of feeders of a worker with a GPU.
MAX_FEEDERS = 16


def part_bounds(
    device: str, clips: int | None, minutes: float | None, *, partitioned: bool = False
) -> tuple[int, float]:
    """Return the clips per group and minutes per part. None is replaced by the device's default.

    Args:
        partitioned: whether several runs share the manifest. They must cut it into the same groups on every device.
    """
    on_gpu = device != "cpu"
    default_clips = GPU_PART_CLIPS if on_gpu and not partitioned else PART_CLIPS
    default_minutes = GPU_PART_MINUTES if on_gpu else PART_MINUTES
    return default_clips if clips is None else clips, default_minutes if minutes is None else minutes
