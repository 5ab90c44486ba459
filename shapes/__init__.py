"""The built-in data set Shapes, and two small networks trained on it.

``renderer`` draws the videos. The networks are part of amex, so that the demo has useful features without a download.
``README.md`` in this folder describes them, ``train`` trains them.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
