"""Keys of a run whose scheduler other machines can reach: made for it, and gone with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ...errors import AmexError

# Files NAME.pem.
KEYS = ("ca", "cert", "key")


def remove_keys(folder: Path) -> None:
    """Ends what ``temporary_security`` began; the logs stay."""
    for name in KEYS:
        (folder / f"{name}.pem").unlink(missing_ok=True)


def temporary_security(folder: Path) -> Any:
    """Keys for one run, in files that its user alone can read; whoever has them may run code as that user."""
    from distributed import Security

    try:
        made = Security.temporary()
    except ImportError as error:
        raise AmexError("keys for the scheduler need cryptography: pip install 'amex[cluster]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    remove_keys(folder)
    for name, text in zip(KEYS, (made.tls_ca_file, made.tls_worker_cert, made.tls_worker_key), strict=True):
        with open(os.open(folder / f"{name}.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
            handle.write(text)
    return security_of(*(folder / f"{name}.pem" for name in KEYS))


def security_of(ca: Path, cert: Path, key: Path) -> Any:
    """One pair of keys for every role, encryption required."""
    from distributed import Security

    roles = {
        f"tls_{role}_{what}": str(path)
        for role in ("client", "scheduler", "worker")
        for what, path in (("cert", cert), ("key", key))
    }
    return Security(require_encryption=True, tls_ca_file=str(ca), **roles)
