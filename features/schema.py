"""The store format: file layout, specs and their fingerprints, commit records, and the errors about them.

store.zarr/
  zarr.json                        format version, creation time
  problems.json                    manifest lines of the last run that are not usable clips
  <stream>/spec.json               spec, fingerprint, provenance
  <stream>/parts/<folder>/values   (rows, ...) the features
  <stream>/parts/<folder>/times    (rows, 2) float64 seconds, half-open
  <stream>/parts/<folder>/offsets  (clips + 1,) int64: rows offsets[i]:offsets[i+1] belong to clip i
  <stream>/parts/<folder>/clip_ids (clips,) string
  <stream>/commits/<part>.json     written last: a part without a commit record does not exist
  <stream>/clips.index             an index of the commit records, to open a large stream fast

The name of a part's folder contains a digest of its content, and the commit record names the folder. So two writers of
the same part (for example if one was wrongly presumed dead) never write the same files. The first commit counts.

A commit record can list parts that it ``replaces``, after a compaction or a removal of clips. Those no longer count,
whether their files still exist or not. Such a record has the ``origins`` of its clips: the digest of the part in which
they were first written, the position of the first clip there, and the number of consecutive clips.

Streams of objects have more arrays with one entry per row: boxes, scores, labels, counts, frame_size. The stream of a
classifier has ``probabilities``. In a stream of text the clip ids are the captions, a row is a token, there are no
times, and ``sentence`` has one entry per caption. ``row_arrays`` and ``clip_arrays`` return the arrays of a stream.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AmexError, did_you_mean, first_line
from ..storage import MISSING_ERRORS

# 2: a part's folder has a digest in its name. 3: spec.json, problems.json and the store's zarr.json have checksums too.
# 4: parts can replace others, and commit records have the layouts of the arrays.
FORMAT = 4
# Separates the content of a record from its sha256.
SEAL = ',\n "sha256": "'
# Files of the store itself.
FILES = {"zarr.json", "problems.json"}
# The cached index of a stream, see ``index.py``.
INDEX = "clips.index"
# A program locks this file while it rewrites parts of a stream.
LOCK = ".rewriting.lock"
# Names that the store, its streams and Zarr use themselves.
RESERVED = {*FILES, "c", "spec.json", "parts", "commits", INDEX}
# Prefix of the folder of a stream that is being removed.
REMOVED = ".removed-"
# Maximal bytes of a stream's name, and of a file name in most file systems. Temporary files append to the name.
NAME_BYTES, FILE_NAME_BYTES = 100, 255


class StoreError(AmexError):
    """A store cannot be read or written as asked."""


class SpecMismatch(StoreError):
    """A stream has features made with other settings."""


class DamagedPart(StoreError):
    """The bytes on disk are not those that were committed."""


class ReplacedPart(StoreError):
    """Another program replaced or removed a part while it was read."""


class LaterFormat(StoreError):
    """A store, or one of its files, was written by a later version of amex."""


class MissingClip(StoreError, KeyError):
    """A clip has no rows in a stream: it was never extracted, or it failed.

    The message suggests similar ids. They are searched only when the message is read, so callers that skip missing
    clips stay fast.

    Args:
        clip_id: the requested id.
        among: candidates for the suggestion.
    """

    def __init__(self, message: str, clip_id: str = "", among: Iterable[str] = ()) -> None:
        super().__init__(message)
        self._request = clip_id, among

    def __str__(self) -> str:
        return super().__str__() + did_you_mean(*self._request)

    def __reduce__(self) -> tuple[type[MissingClip], tuple[str]]:
        return type(self), (str(self),)


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """What a clip was computed from, according to its commit record. None means null or not recorded.

    Attributes:
        recorded: whether the record has the times. Imports and stores of earlier versions have at most the video.
        video: path of the file, relative to the videos folder; None if no file was found.
        start: seconds on the video's own clock; None for the beginning of the video.
        end: seconds, exclusive; None for the end of the video.
        bytes: size of the file; None if unknown, as for a web server.
        modified: modification time of the file, in nanoseconds since 1970.
        sha256: digest of the file, if the run computed it.
        revision: how often the clip was computed again because its times or its file had changed.
    """

    recorded: bool = True
    video: str | None = None
    start: float | None = None
    end: float | None = None
    bytes: int | None = None
    modified: int | None = None
    sha256: str | None = None
    revision: int = 0

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> ClipSource:
        """Return the source of a clip's entry in a commit record."""
        return cls(recorded="start" in entry, **{name: entry[name] for name in SOURCE_FIELDS if name in entry})

    def has_times(self, start: float | None, end: float | None) -> bool:
        """Return whether the clip was computed from these seconds; True if the times are not recorded."""
        return not self.recorded or (self.start, self.end) == (start, end)

    @property
    def entry(self) -> dict[str, Any]:
        """The fields of a commit record: the times if they were recorded, and all other values that are not None."""
        times = {"start": self.start, "end": self.end} if self.recorded else {}
        file = {"video": self.video, "bytes": self.bytes, "modified": self.modified, "sha256": self.sha256}
        revision = {"revision": self.revision} if self.revision else {}
        return {**times, **{name: value for name, value in file.items() if value is not None}, **revision}


# The source of imported rows, and of rows from versions that did not record it.
UNRECORDED = ClipSource(recorded=False)
SOURCE_FIELDS = ("video", "start", "end", "bytes", "modified", "sha256", "revision")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A clip that could not be processed.

    Attributes:
        clip_id: the clip; in a stream of text, the caption.
        video: the video, as the manifest names it.
        stage: ``find``, ``open``, ``decode``, ``sample``, ``encode`` or ``manifest``.
        reason: one readable line.
        attempts: number of attempts.
        source: what the clip should have been computed from, see ``ClipSource.entry``; empty if not recorded.
    """

    clip_id: str
    video: str
    stage: str
    reason: str
    attempts: int = 1
    source: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key: of several failures of a clip, the one with the highest rank counts."""
        return self.source.get("revision", 0), self.attempts


def canonical(record: Any) -> bytes:
    """Return the canonical JSON of a record: sorted keys, no spaces, no NaN."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(spec: Mapping[str, Any]) -> str:
    """Return the sha256 of a spec's canonical JSON. Equal fingerprints mean equal settings."""
    return hashlib.sha256(canonical(spec)).hexdigest()


def row_arrays(spec: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the arrays with one entry per row: name -> (shape of an entry, dtype); ``values`` first.

    ``times`` is missing if the features were imported without times.
    """
    output = spec["output"]
    arrays = {"values": output, **output.get("arrays", {})}
    if not is_caption_stream(spec) and output.get("times", True):
        arrays["times"] = {"shape": [2], "dtype": "float64"}
    return {name: (tuple(array["shape"]), array["dtype"]) for name, array in arrays.items()}


def clip_arrays(spec: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the arrays with one entry per clip, or per caption of text: name -> (shape of an entry, dtype)."""
    arrays = spec["output"].get("clip_arrays", {})
    return {name: (tuple(array["shape"]), array["dtype"]) for name, array in arrays.items()}


def entry_bytes(arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> int:
    """Return the bytes of one entry of all these arrays together, uncompressed."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())


def is_caption_stream(spec: dict[str, Any]) -> bool:
    """Return whether this is the spec of a stream of text: its ids are captions."""
    return spec["output"].get("of") == "captions"


def diff_specs(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted field name, old value, new value) for every value in which two specs differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            yield from diff_specs(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def as_ids(clip_ids: Iterable[str]) -> tuple[str, ...]:
    """Return clip ids as a tuple. Raises StoreError for a single text, which would be split into letters."""
    if isinstance(clip_ids, str):
        raise StoreError(f"clip ids are a list: [{clip_ids!r}]")
    return tuple(clip_ids)


def is_plain(name: str) -> bool:
    """Return whether a name is a valid folder name on every backend and does not lead out of its folder."""
    valid = re.fullmatch(r"[\w-][\w.-]*", name) and len(name.encode()) <= NAME_BYTES
    return bool(valid) and not name.startswith("__") and name.lower() not in RESERVED


def stream_path(store: Path, name: str) -> Path:
    """Return the folder of a stream. Raises StoreError if it does not exist and ``name`` is not a valid new name.

    Earlier versions allowed more names.
    """
    if not is_plain(name) and not has_stream(store, name):
        shown = name if len(name) <= NAME_BYTES else f"{name[:NAME_BYTES]}..."
        raise StoreError(
            f"{shown!r} cannot be a stream's name: use up to {NAME_BYTES} letters, digits, _, - and ., with no . or __ "
            f"at the start, and none of {', '.join(sorted(RESERVED))}"
        )
    return store / name


def is_stream(folder: Path) -> bool:
    """Return whether a folder of a store is a stream, possibly one that has lost its spec.json."""
    return (folder / "spec.json").is_file() or any((folder / "commits").glob("*.json"))


def has_stream(store: Path, name: str) -> bool:
    """Return whether a store has a stream of this name, including names that new streams cannot have."""
    within = name and not name.startswith(".") and not {"/", "\0"} & set(name) and name not in FILES
    return bool(within) and len(name.encode(errors="surrogatepass")) <= FILE_NAME_BYTES and is_stream(store / name)


def check_stream(store: Path, name: str) -> None:
    """Raise StoreError unless a store has a stream of this name, readable or not."""
    if not has_stream(store, name):
        names = stream_names(store)
        listed = ", ".join(names) or "none yet"
        raise StoreError(f"no stream {name!r} in {store}; there is {listed}{did_you_mean(name, names)}")


def stream_names(store: Path) -> list[str]:
    """Return the names of a store's streams, including unreadable ones; empty if there is no folder."""
    with contextlib.suppress(*MISSING_ERRORS):
        return sorted(path.name for path in store.iterdir() if has_stream(store, path.name))
    return []


def check_arrays(spec: dict[str, Any]) -> None:
    """Raise ValueError, KeyError or TypeError unless all arrays of a spec have valid names, shapes and dtypes."""
    for name, (shape, dtype) in {**row_arrays(spec), **clip_arrays(spec)}.items():
        if not is_plain(name):
            raise ValueError(f"{name!r} cannot be an array's name")
        np.empty((0, *shape), dtype)


def sealed(record: dict[str, Any]) -> str:
    """Return a record as JSON that ends with the sha256 of the preceding text. List items have a line each."""
    entries = (f" {json.dumps(name)}: {_lines(value)}" for name, value in record.items())
    text = "{\n" + ",\n".join(entries)
    return f'{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(_ENCODER.encode, value)) + "\n ]"
    return _ENCODER.encode(value)


# Without indentation, json uses its fast encoder in C.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def check_seal(data: bytes) -> None:
    """Raise ValueError if the text from ``sealed`` has changed."""
    text, _, seal = data.rpartition(SEAL.encode())
    if seal != f'{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode():
        raise ValueError("its checksum differs")


def part_folder(commit: dict[str, Any]) -> str:
    """Return the folder of a part, relative to ``parts``. In format 1 it is the name of the part."""
    return commit.get("folder", commit["part"])


def new_folder_name(part: str, files: Mapping[str, Any]) -> str:
    """Return the folder name for a new part: equal for equal files, different otherwise."""
    return f"{part}.{fingerprint(files)[:12]}"


def bytes_of(commit: Mapping[str, Any]) -> int:
    """Return the total bytes of a part's files."""
    return sum(file["bytes"] for file in commit["files"].values())


def clip_origins(commit: Mapping[str, Any], clips: int) -> list[tuple[str, int]]:
    """Return the origin of each clip of a part: the digest of the part that first had its rows, and its position there.

    Rows keep their origin when they are rewritten into another part.

    Args:
        clips: number of clips in the part.
    """
    if "origins" in commit:
        return [(digest, first + more) for digest, first, count in commit["origins"] for more in range(count)]
    digest = fingerprint(commit["files"])[:12]
    return [(digest, place) for place in range(clips)]


def free_name(part: str, taken: Collection[str]) -> str:
    """Return ``part``, or a name derived from it that is not in ``taken``.

    The names of replaced parts must be in ``taken``: a new part with such a name would not count.
    """
    while part in taken:
        part = next_name(part)
    return part


def next_name(part: str) -> str:
    """Return the next name to try for a part whose name is taken. It sorts beside the first name."""
    return f"{part.partition('-')[0]}-{hashlib.sha256(part.encode()).hexdigest()[:12]}"


def replaced_parts(commit: dict[str, Any]) -> list[str]:
    """Return the names of the parts that a commit replaces."""
    return commit.get("replaces", [])


def read_commit(path: Path) -> dict[str, Any]:
    """Read a commit record and check its checksum. Raises DamagedPart."""
    return parse_commit(path, path.read_bytes())


def parse_commit(path: Path, data: bytes) -> dict[str, Any]:
    """Parse a commit record from ``data``, the content of ``path``. Raises DamagedPart."""
    try:
        record = json.loads(data)
        digest = record.pop("sha256")
        if record["format"] != 1:
            check_seal(data)
        elif digest != hashlib.sha256(canonical(record)).hexdigest():
            raise ValueError("its checksum differs")
        _check_format(path, record["format"])
        _check_commit(record, path.name.removesuffix(".json"))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamagedPart(f"the commit record {path} is damaged ({_reason(error)}); {REPAIR}") from error
    return record


def _check_commit(record: dict[str, Any], part: str) -> None:
    """Raise ValueError unless a record is consistent: its part, its paths, and the number of its rows."""
    check_names(record, part)
    if part in replaced_parts(record):
        raise ValueError("it replaces itself")
    rows = [clip["rows"] for clip in record["clips"]]
    if sum(rows) != record["rows"] or min(rows, default=0) < 0:
        raise ValueError("its clips do not have as many rows as the part")


def check_names(record: dict[str, Any], part: str) -> None:
    """Raise ValueError unless a record belongs to this part and all its paths are inside the folder of the part."""
    if record["part"] != part:
        raise ValueError(f"it is the record of part {record['part']!r}")
    name, digest = part_folder(record)[: len(part)], part_folder(record)[len(part) :]
    if name != part or not re.fullmatch("" if record["format"] == 1 else r"\.[0-9a-f]{12}", digest):
        raise ValueError(f"its folder {part_folder(record)!r} is not one of this part")
    for name, file in record["files"].items():
        if {"", ".", ".."} & set(name.split("/")):
            raise ValueError(f"its file {name!r} is outside of the part")
        _ = file["bytes"], file["sha256"]
    _ = record.get("arrays", {}).keys()


def read_spec(path: Path) -> dict[str, Any]:
    """Read a spec.json and check its checksum and fingerprint. Raises StoreError."""
    try:
        data = path.read_bytes()
        record = json.loads(data)
        if record["fingerprint"] != fingerprint(record["spec"]):
            raise ValueError("the spec does not have the fingerprint beside it")
        if not is_unsealed(record) or record.keys() != {"format", "fingerprint", "spec", "provenance"}:
            check_seal(data)
        _check_format(path, record["format"])
        check_arrays(record["spec"])
    except MISSING_ERRORS as error:
        raise StoreError(f"{path} is missing; {REPAIR_SPEC}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({_reason(error)}); {REPAIR_SPEC}") from error
    return record


def is_unsealed(record: dict[str, Any]) -> bool:
    """Return whether a record that is not a commit has a format without checksums."""
    return record["format"] in (1, 2)


def _check_format(path: Path, number: int) -> None:
    if number > FORMAT:
        raise LaterFormat(f"{path} has store format {number}, this amex reads {FORMAT}: upgrade amex")


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else first_line(error)


def group_text(about: dict[str, Any] | None = None) -> str:
    """Return the zarr.json of a group. That of the store also has the record ``about`` with its checksum."""
    attributes = {} if about is None else {"amex": {**about, "sha256": fingerprint(about)}}
    return json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=2) + "\n"


def part_text(part: str, digest: str) -> str:
    """Return the zarr.json of a part's group. It identifies the part, so a swapped folder is detected.

    Args:
        digest: the fingerprint of the spec.
    """
    attributes = {"amex": {"part": part, "fingerprint": digest}}
    return json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=2) + "\n"


def read_store(path: Path) -> dict[str, Any]:
    """Read ``format`` and ``created`` from the zarr.json of a store.

    Raises:
        FileNotFoundError, NotADirectoryError: if ``path`` does not exist.
        StoreError: if it is not an amex store, has a later format, or its zarr.json is damaged or missing.
    """
    try:
        about = json.loads((path / "zarr.json").read_bytes())["attributes"]["amex"]
        seal = about.pop("sha256", None)
        if seal != (None if is_unsealed(about) else fingerprint(about)):
            raise ValueError("its checksum differs")
        _check_format(path, about["format"])
    except (*MISSING_ERRORS, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        if stream_names(path):
            repair = f"run amex features verify {path} --repair"
            raise StoreError(f"{path / 'zarr.json'} is damaged ({_reason(error)}); {repair}") from error
        if isinstance(error, MISSING_ERRORS):
            raise
        raise StoreError(f"{path} is not an amex store: its zarr.json does not say so") from error
    return about


def read_problems(path: Path) -> list[Failure]:
    """Read problems.json; empty if there is none. Raises StoreError if it is damaged."""
    try:
        data = path.read_bytes()
        record = json.loads(data)
        if isinstance(record, dict):
            check_seal(data)
            _check_format(path, record["format"])
            record = record["problems"]
        return [Failure(**entry) for entry in record]
    except MISSING_ERRORS:
        return []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{path} is damaged ({_reason(error)}); the next amex extract rewrites it, or "
            f"amex features verify {path.parent} --repair deletes it"
        ) from error


# The end of every message about damage.
REPAIR = (
    "run the same amex extract command with --repair to recompute only this part, or remove the stream with "
    "amex features rm and import it again"
)
REPAIR_SPEC = (
    "run the same amex extract command with --repair to rewrite it, or remove the stream with amex features rm and "
    "import it again"
)
