"""The choices and the bounds of a run. Imports nothing, so that the command line can show them."""

# Clips a group, at least.
PART_CLIPS = 64
# Minutes of video a part, at most: two to five minutes of R(2+1)D-18 on two cores of a CPU.
PART_MINUTES = 5.0
# The same on GPUs, which take some ten seconds for an hour of video. At the end of each part they wait for its last
# video, and for its files to be written.
GPU_PART_CLIPS = 1024
GPU_PART_MINUTES = 60.0
# Seconds without a later frame after which a decoder is killed.
DEADLINE = 60.0
# Longest time one frame may be shown, in seconds. Slides take less; damaged durations more.
LONGEST_FRAME = 600
# Seconds without progress after which a worker is ended: more than the slowest batch takes, or the write of a part.
STALL = 600
# What --decoder takes, and the decoders that are tried then, in this order. Where a later one would give other frames,
# the streams' specs must record the choice: see encoders.settings.decoder_rules.
DECODERS = {
    "auto": ("decord", "pyav sparse", "pyav"),
    "pyav": ("pyav sparse", "pyav"),
    "decord": ("decord", "pyav sparse", "pyav"),
    "nvdec": ("nvdec", "pyav sparse", "pyav"),
}
# Feeders of a worker with a GPU, at most, unless a user asks for more.
MOST_FEEDERS = 16


def part_bounds(
    device: str, clips: int | None, minutes: float | None, *, partitioned: bool = False
) -> tuple[int, float]:
    """Clips a group and minutes a part: as given, else what suits the device.

    Args:
        partitioned: whether other runs share the manifest. All must cut it into the same groups, whatever they run on.
    """
    on_gpu = device != "cpu"
    usual_clips = GPU_PART_CLIPS if on_gpu and not partitioned else PART_CLIPS
    usual_minutes = GPU_PART_MINUTES if on_gpu else PART_MINUTES
    return usual_clips if clips is None else clips, usual_minutes if minutes is None else minutes
