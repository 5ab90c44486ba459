"""Read the arrays of a part's folder without amex.

Tests also run this file in separate processes, because TensorStore has threads, which do not survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from urllib.parse import urlsplit

import numpy as np


def by_zarr(folder: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    import zarr

    group = zarr.open_group(folder, mode="r")
    return {name: group[name][...] for name in names}


def by_xarray(folder: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    import xarray

    with xarray.open_zarr(folder, consolidated=False, chunks=None) as dataset:
        return {name: dataset[name].values for name in names}


def by_tensorstore(folder: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """TensorStore does not support texts."""
    import tensorstore

    address = urlsplit(folder)
    if address.scheme == "s3":
        place = {"driver": "s3", "bucket": address.netloc, "endpoint": os.environ["AWS_ENDPOINT_URL"]}
        place |= {"aws_region": "us-east-1", "path": address.path.strip("/")}
    else:
        place = {"driver": "file", "path": folder}
    reads = {}
    for name in names:
        spec = {"driver": "zarr3", "kvstore": {**place, "path": f"{place['path']}/{name}/"}}
        reads[name] = tensorstore.open(spec, open=True, read=True).result().read()
    return {name: read.result() for name, read in reads.items()}
