"""The package behind the function ``amex.extract``: from videos and captions to features in a store.

``video`` leads from a file to sampled frames, ``encoders`` from frames and captions to features, and ``run`` is the
Dask job around both: it plans what the store lacks and cuts it into parts. ``run.part`` is one task of a job.
"""

import sys

from .. import ExtractPackage

sys.modules[__name__].__class__ = ExtractPackage
