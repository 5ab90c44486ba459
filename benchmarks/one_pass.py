"""Compare three streams in one pass over the videos with three runs of one stream each, as commands.

    python benchmarks/one_pass.py [--videos DIR] [--rounds 1] [--device cpu] [--json FILE]

The streams are clip, frame and object features with random weights. All runs include start-up, decoding and writing, as
for users. Quote the ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from films import films

STREAMS = {
    "r2plus1d_18": ["--set", "r2plus1d_18.stride=64"],
    "clip_vit_b32": ["--set", "clip_vit_b32.fps=2"],
    "frcnn_r50_coco": ["--set", "frcnn_r50_coco.fps=0.2", "--set", "frcnn_r50_coco.score=0"],
}


def extract(videos: Path, store: Path, streams: list[str], device: str) -> tuple[float, dict]:
    """Run one command; return its seconds and its report."""
    command = [sys.executable, "-m", "amex.cli", "extract", "--dataset", "folder", "--videos", str(videos)]
    command += ["--store", str(store), "--device", device, "--json"]
    for name in streams:
        command += ["--stream", name, "--weights", f"{name}=random:0", *STREAMS[name]]
    begin = time.perf_counter()
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return time.perf_counter() - begin, json.loads(printed)["report"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, help="a folder of videos; default: make some")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos = args.videos
        if videos is None:
            videos = Path(folder) / "videos"
            films(videos, "480p", 4, 500)
        rounds = []
        for number in range(args.rounds):
            alone = {
                name: extract(videos, Path(folder) / f"{name}-{number}.zarr", [name], args.device)[0]
                for name in STREAMS
            }
            together, report = extract(videos, Path(folder) / f"all-{number}.zarr", list(STREAMS), args.device)
            ratio = together / sum(alone.values())
            rounds.append({"alone": alone, "together": together, "ratio": ratio, "report": report})
            runs = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in alone.items())
            print(f"{runs}; one pass {together:.1f} s, ratio {ratio:.2f}", flush=True)
    print(f"median ratio {statistics.median(each['ratio'] for each in rounds):.2f}")
    if args.json:
        args.json.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
