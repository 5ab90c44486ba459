"""Compare a complete `amex extract` of R(2+1)D-18 with the usual recipe, as commands, from start to files on disk.

    python benchmarks/command.py [--videos DIR] [--rounds 3] [--json FILE]

The recipe decodes a whole video into memory with PyAV, transforms it with torchvision's operators, cuts it into windows
of 16 frames, runs torchvision's network on one window at a time in float32, and saves a .npy file a video. Both use
random weights; start-up, decoding and writing are part of both. Quote the ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from films import films

# A realistic workload: 145 windows.
FILES, FRAMES = 5, 464
RECIPE = """
import sys
from pathlib import Path
import av, numpy as np, torch
from torchvision.models.video import r2plus1d_18
from torchvision.transforms.v2.functional import center_crop, normalize, resize

network = r2plus1d_18().eval()
network.fc = torch.nn.Identity()
windows = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    with av.open(str(path)) as video:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    pixels = center_crop(resize(pixels, [128, 171], antialias=False), [112, 112])
    pixels = normalize(pixels, [0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989])
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pixels) - 15, 16):
            rows.append(network(pixels[start : start + 16].transpose(0, 1)[None])[0])
    np.save(Path(sys.argv[2]) / f"{path.stem}.npy", torch.stack(rows).numpy())
    windows += len(rows)
print(windows)
"""


def seconds(command: list[str]) -> tuple[float, str]:
    """Run a command; return its seconds and its output."""
    begin = time.perf_counter()
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - begin, printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of videos; default: make some")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos = args.videos
        if videos is None:
            videos = Path(folder) / "videos"
            films(videos, "240p", FILES, FRAMES)
        rounds = []
        for number in range(args.rounds):
            out = Path(folder) / f"npy{number}"
            out.mkdir()
            recipe, printed = seconds([sys.executable, "-c", RECIPE, str(videos), str(out)])
            store = Path(folder) / f"{number}.zarr"
            options = ["--dataset", "folder", "--videos", str(videos), "--store", str(store), "--json"]
            options += ["--weights", "r2plus1d_18=random:0", "--precision", args.precision, "--device", "cpu"]
            # The recipe drops incomplete windows.
            options += ["--set", "r2plus1d_18.tail=drop"]
            ours, outcome = seconds([sys.executable, "-m", "amex.cli", "extract", *options])
            rows = json.loads(outcome)["report"]["rows"]
            assert rows == int(printed), (rows, printed)
            rounds.append({"recipe": recipe, "amex": ours, "ratio": recipe / ours, "windows": rows})
            print(
                f"{rows} windows: recipe {recipe:.1f} s, amex extract {ours:.1f} s, ratio {recipe / ours:.2f}",
                flush=True,
            )
    ratio = statistics.median(each["ratio"] for each in rounds)
    print(f"median ratio {ratio:.2f} on {len(os.sched_getaffinity(0))} cores")
    if args.json:
        args.json.write_text(json.dumps({"rounds": rounds, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
