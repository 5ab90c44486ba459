"""The local search page: what ``amex serve`` answers, and the files that a browser gets.

``Library`` knows what can be found, ``VideoFiles`` which file a clip may be played from, ``Pictures`` decodes;
``make_app`` puts them behind addresses. ``static/`` is the page itself: it asks for JSON, and fetches nothing from
elsewhere. Clips are named by their ids alone: no address holds a path.
"""

from .app import make_app
from .files import VideoFiles
from .library import Library, clip_streams
from .pictures import Pictures, open_pictures

__all__ = ["Library", "Pictures", "VideoFiles", "clip_streams", "make_app", "open_pictures"]
