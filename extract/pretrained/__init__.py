"""Two small networks of our own, trained on Shapes: they come with amex, so that its demo has features that mean
something without a download. ``README.md`` beside this file says what they are; ``train.py`` makes them again.
"""

from pathlib import Path

from ..weights import Packaged

FOLDER = Path(__file__).parent
SHAPES_DETECTOR_CONFIG = FOLDER / "shapes_detector.py"
SHAPES_DETECTOR = Packaged(
    path=FOLDER / "shapes_detector.pth",
    sha256="37d7139d367e9c63ec6e061f0e5b3b79c3b82ca4152a0586b7e6de754d35b0cf",
    licence="Apache-2.0",
    source="Shapes, amex",
)
R2PLUS1D_TINY = Packaged(
    path=FOLDER / "r2plus1d_tiny.pth",
    sha256="cb0651e2befae95877bad3cbede081f4695f8fddba21291829cd124c5186bcb7",
    licence="Apache-2.0",
    source="Shapes, amex",
)
