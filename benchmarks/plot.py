"""Draw docs/figures/extraction.svg from the files that other benchmarks wrote to benchmarks/results with ``--json``.

python benchmarks/plot.py
"""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "extraction.svg"


def read(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())


def main() -> None:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    FigureCanvasSVG(figure)
    left, right = figure.subplots(1, 2)
    rows = [row for row in read("h100_extraction") if row["stream"] == "r2plus1d_18"]
    feeders = [row["feeders"] for row in rows]
    left.plot(feeders, [row["feed"] for row in rows], "o-", label="feeders alone")
    left.plot(feeders, [row["end_to_end"] for row in rows], "s-", label="end to end")
    left.axhline(rows[0]["encode"], color="gray", linestyle="--", label="encoder alone")
    left.set_title("R(2+1)D-18, bf16, 320x240, one H100", fontsize=10)
    left.set_xlabel("feeders on 16 cores")
    left.set_ylabel("windows of 16 frames a second")
    left.set_xticks(feeders)
    left.set_ylim(bottom=0)
    left.legend(fontsize=8)
    bars = [(f"{row['size']}, {row['processes']} of 16", row) for row in read("h100_feed") if row["decoder"] == "pyav"]
    bars += [(f"{row['size']}, {row['processes']} of 2", row) for row in read("two_cores_feed")]
    right.barh([name for name, _ in bars], [row["ratio"] for _, row in bars], color="tab:blue")
    right.axvline(1, color="gray", linestyle="--")
    right.invert_yaxis()
    right.set_title("feeders / loops that decode and transform alone", fontsize=10)
    right.set_xlabel("ratio, processes of cores")
    right.tick_params(axis="y", labelsize=8)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    main()
