"""A run: what is left to do, cut into parts, and a Dask cluster that does them."""
