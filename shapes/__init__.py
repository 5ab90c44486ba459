"""The embedded data set Shapes, and two small networks trained on it.

``renderer`` draws the videos. The networks come with amex, so that the demo has features that mean something without a
download: ``README.md`` beside this file says what they are, ``train`` makes them again.
"""

from pathlib import Path

FOLDER = Path(__file__).parent
