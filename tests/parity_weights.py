"""Deterministic weights for parity tests: the same state dict on any machine and library version.

Each tensor is drawn from a generator seeded by the CRC-32 of its name, scaled so that activations neither vanish nor
explode. The reference outputs beside this file were computed with weights filled in this way.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def fill(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a copy of ``state_dict`` with every tensor replaced by its deterministic value."""
    filled = {}
    for name, tensor in state_dict.items():
        if name.endswith("num_batches_tracked"):
            filled[name] = torch.zeros_like(tensor)
            continue
        generator = np.random.RandomState(zlib.crc32(name.encode()))
        shape = tuple(tensor.shape)
        noise = generator.standard_normal(shape).astype(np.float32)
        if name.endswith("running_var"):
            value = 1.0 + 0.1 * np.abs(noise)
        elif name.endswith("running_mean"):
            value = 0.1 * noise
        elif tensor.dim() == 1:
            value = (1.0 + 0.1 * noise) if name.endswith("weight") else 0.1 * noise
        else:
            fan_in = int(np.prod(shape[1:]))
            value = noise * np.sqrt(2.0 / fan_in)
        filled[name] = torch.from_numpy(np.asarray(value, dtype=np.float32)).to(tensor.dtype)
    return filled


def fill_calibrated(state_dict: dict[str, torch.Tensor], statistics: str) -> dict[str, torch.Tensor]:
    """As ``fill``, with batch-norm statistics read from an .npz, unit scale and zero shift.

    With statistics measured on real clips every layer stays normalised, so features of different windows differ clearly
    and a comparison of features means something.
    """
    filled = fill(state_dict)
    with np.load(statistics) as measured:
        for name in measured.files:
            filled[name] = torch.from_numpy(measured[name])
            layer = name.rsplit(".", 1)[0]
            filled[f"{layer}.weight"] = torch.ones_like(filled[name])
            filled[f"{layer}.bias"] = torch.zeros_like(filled[name])
    return filled
