"""Temporary TLS keys of a run whose scheduler accepts connections from other machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import needs

# The keys are in files NAME.pem.
KEYS = ("ca", "cert", "key")


def remove_keys(folder: Path) -> None:
    """Delete the keys that ``temporary_security`` wrote; keep the logs."""
    for name in KEYS:
        (folder / f"{name}.pem").unlink(missing_ok=True)


def temporary_security(folder: Path) -> Any:
    """Write new keys for one run. Only its user can read the files, because the keys allow to run code as that user.

    Raises:
        MissingExtra: if the library ``cryptography`` is not installed.
    """
    from distributed import Security

    with needs("cluster", "a key for the scheduler"):
        temporary = Security.temporary()
    folder.mkdir(parents=True, exist_ok=True)
    remove_keys(folder)
    texts = (temporary.tls_ca_file, temporary.tls_worker_cert, temporary.tls_worker_key)
    for name, text in zip(KEYS, texts, strict=True):
        with open(os.open(folder / f"{name}.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(text)
    return security_of(*(folder / f"{name}.pem" for name in KEYS))


def security_of(ca: Path, cert: Path, key: Path) -> Any:
    """Return Dask's security with the same keys for every role, and encryption required."""
    from distributed import Security

    roles = {
        f"tls_{role}_{what}": str(path)
        for role in ("client", "scheduler", "worker")
        for what, path in (("cert", cert), ("key", key))
    }
    return Security(require_encryption=True, tls_ca_file=str(ca), **roles)
