"""How pixels become features: find, decode, sample, encode, write, and the Dask job around it.

``presets`` says what streams there are, ``job`` runs them; ``part`` is one task of a job, read from top to bottom.
"""
