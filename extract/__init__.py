"""How pixels become features, in three rooms.

``video`` leads from a file to sampled frames, ``encoders`` from frames and captions to features, and ``run`` is the
Dask job around both: what is left to do, cut into parts. ``run.part`` is one task of a job, read from top to bottom.
"""
