"""What a store is made of: file layout, specs and their fingerprints, commit records, and the errors about them.

store.zarr/
  zarr.json                        format version, creation time
  problems.json                    manifest lines of the last run that were not usable clips
  <stream>/spec.json               spec, fingerprint, provenance
  <stream>/parts/<folder>/values   (rows, ...) the features
  <stream>/parts/<folder>/times    (rows, 2) float64 seconds, half-open
  <stream>/parts/<folder>/offsets  (clips + 1,) int64: rows offsets[i]:offsets[i+1] belong to clip i
  <stream>/parts/<folder>/clip_ids (clips,) string
  <stream>/commits/<part>.json     written last: a part without its commit does not exist

A part's folder is called after the part and a digest of what is in it; the commit says which it is. So two writers of
one part, of which one was thought dead, never touch each other's files, and the first to commit is the one that counts.

Streams of objects have further arrays with one entry a row: boxes, scores, labels, counts, frame_size. In a stream of
text the ids are the captions themselves, a row is a token, tokens have no times, and ``sentence`` has one entry a
caption. ``row_arrays`` and ``clip_arrays`` tell which arrays a stream has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AmexError
from ..places import write_text

FORMAT = 2
# Between what a commit record says and its sha256.
SEAL = ',\n "sha256": "'


class StoreError(AmexError):
    """A store cannot be read or written as asked."""


class SpecMismatch(StoreError):
    """Rows made in one way were about to be mixed with rows made in another."""


class DamagedPart(StoreError):
    """Bytes on disk are not the bytes that were committed."""


class ClipNotThere(StoreError, KeyError):
    """A clip has no rows in a stream: it was never extracted, or it failed."""

    __str__ = Exception.__str__  # KeyError would quote the message


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One entry of the quarantine ledger.

    Attributes:
        clip_id: the clip; in a stream of text, the caption.
        stage: ``find``, ``open``, ``decode``, ``sample``, ``encode`` or ``manifest``.
        reason: one line, as a person would say it.
        attempts: how many times this clip was tried.
    """

    clip_id: str
    video: str
    stage: str
    reason: str
    attempts: int = 1


def canonical(record: Any) -> bytes:
    """The one JSON text of a record: sorted keys, no spaces, no NaN."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(spec: dict[str, Any]) -> str:
    """sha256 of a spec's canonical JSON: equal exactly when features were made in the same way."""
    return hashlib.sha256(canonical(spec)).hexdigest()


def row_arrays(spec: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """The arrays of a stream that have one entry a row: name -> (shape of an entry, dtype); ``values`` first.

    Features that were imported without times have none.
    """
    output = spec["output"]
    arrays = {"values": output, **output.get("arrays", {})}
    if output.get("of") != "captions" and output.get("times", True):
        arrays["times"] = {"shape": [2], "dtype": "float64"}
    return {name: (tuple(array["shape"]), array["dtype"]) for name, array in arrays.items()}


def clip_arrays(spec: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Those that have one entry a clip, or in a stream of text a caption: name -> (shape of an entry, dtype)."""
    arrays = spec["output"].get("clip_arrays", {})
    return {name: (tuple(array["shape"]), array["dtype"]) for name, array in arrays.items()}


def diff_specs(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (field, old value, new value) for every leaf in which two specs differ; dotted field names."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            yield from diff_specs(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def write_json(path: Path, record: Any, *, once: bool = False) -> None:
    """Writes a JSON file so that it is there whole or not at all, also after a power cut.

    Args:
        once: leave the file alone if it is there: of several writers the first has its way.
    """
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", once=once)


def sealed(record: dict[str, Any]) -> str:
    """The text of a commit record: JSON whose last entry is the sha256 of all before it."""
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False).removesuffix("\n}")
    return f'{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def folder_of(commit: dict[str, Any]) -> str:
    """Where below ``parts`` the part of a commit lies; format 1 called it after the part alone."""
    return commit.get("folder", commit["part"])


def read_commit(path: Path) -> dict[str, Any]:
    """A commit record whose seal holds; raises DamagedPart otherwise."""
    return parse_commit(path, path.read_bytes())


def parse_commit(path: Path, data: bytes) -> dict[str, Any]:
    """``read_commit`` of the content of ``path``."""
    try:
        record = json.loads(data)
        digest = record.pop("sha256")
        if record["format"] == 1:
            intact = digest == hashlib.sha256(canonical(record)).hexdigest()
        else:
            text, _, seal = data.rpartition(SEAL.encode())
            intact = seal == f'{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode()
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedPart(f"the commit record {path} is damaged ({error}); {REPAIR}") from error
    if not intact:
        raise DamagedPart(f"the commit record {path} is damaged (its checksum differs); {REPAIR}")
    return record


def read_spec(path: Path) -> dict[str, Any]:
    """A stream's spec.json whose fingerprint holds; raises StoreError otherwise."""
    try:
        record = json.loads(path.read_bytes())
        intact = record["fingerprint"] == fingerprint(record["spec"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    if not intact:
        raise StoreError(f"{path} is damaged: the spec does not have the fingerprint beside it")
    return record


def check_store(path: Path) -> None:
    """Raises StoreError unless the Zarr group at ``path`` is an amex store of a format this amex reads."""
    try:
        form = json.loads((path / "zarr.json").read_bytes())["attributes"]["amex"]["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} is not an amex store: its zarr.json does not say so") from error
    if form > FORMAT:
        raise StoreError(f"{path} has store format {form}, this amex reads {FORMAT}: upgrade amex")


# How every message about damage ends.
REPAIR = "run the same amex extract command with --repair to recompute this part alone"
