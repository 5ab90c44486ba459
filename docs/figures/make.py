"""Make overview.png, the picture of the README, from the clips that ``amex demo`` draws.

    python docs/figures/make.py [DEMO_FOLDER]

The left half is the sheet of ``amex features show``, the right half a screenshot of ``amex serve``. If DEMO_FOLDER (by
default a temporary folder) holds no finished demo, ``amex demo`` runs first. Chromium is needed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from browser import Page, chromium  # noqa: E402

AMEX = [sys.executable, "-m", "amex"]
CLIP = "twins_0_00258.mp4"
QUERY = "the small red star approaches the small yellow square"
HEIGHT = 720  # of both halves, in pixels


def sheet(demo: Path, out: Path) -> Path:
    """Write the contact sheet of CLIP."""
    picture = out / "sheet.png"
    command = [*AMEX, "features", "show", demo / "store.zarr", CLIP, "--videos", demo / "videos", "--out", picture]
    subprocess.run([*command, "--frames", "6", "--stream", "objects"], check=True)
    return picture


@contextmanager
def served(demo: Path) -> Iterator[str]:
    """Serve the trained model of the demo and yield the address."""
    command = [*AMEX, "serve", demo / "amenet", "--videos", demo / "videos", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield server.stdout.readline().strip()
        finally:
            server.terminate()


def search_page(demo: Path, out: Path) -> Path:
    """Write a screenshot of the search page, with boxes over the first clip."""
    picture = out / "page.png"
    with served(demo) as address, chromium(out / "profile") as browser:
        page = Page(browser)
        page.size(900, HEIGHT)
        page.open(f"{address}?k=6&q={QUERY.replace(' ', '+')}")
        page.wait("document.querySelectorAll('article').length === 6")
        page.wait("[...document.querySelectorAll('article img')].every((image) => image.naturalWidth)")
        page.run("document.querySelector('article').focus()")
        page.press("b")
        page.wait("document.querySelector('article svg rect')")
        page.run("document.querySelector('article video').controls = false")
        picture.write_bytes(page.screenshot())
    return picture


def beside(pictures: list[Path], gap: int = 24) -> Image.Image:
    """Put pictures of one height beside one another, on white, in 256 colours."""
    images = [Image.open(path).convert("RGB") for path in pictures]
    images = [image.resize((round(image.width * HEIGHT / image.height), HEIGHT)) for image in images]
    joined = Image.new("RGB", (sum(image.width for image in images) + gap * (len(images) - 1), HEIGHT), "white")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + gap
    return joined.quantize(256)


def main(demo: Path) -> None:
    if not (demo / "amenet" / "best.pth").exists():
        subprocess.run([*AMEX, "demo", "--out", demo], check=True)
    with tempfile.TemporaryDirectory() as out:
        picture = beside([sheet(demo, Path(out)), search_page(demo, Path(out))])
        picture.save(HERE / "overview.png", optimize=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
