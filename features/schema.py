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
  <stream>/clips.index             what the commits say of all clips, to open a large stream fast

A part's folder is called after the part and a digest of what is in it; the commit says which it is. So two writers of
one part, of which one was thought dead, never touch each other's files, and the first to commit is the one that counts.

A commit may name parts that it ``replaces``, as when small parts become one large part, or clips are removed. Those do
not count from then on, whether their commits and folders are still there or not. Such a commit has the ``origins`` of
its clips: the digest of the part that they were first written in, their place there, and how many follow one another.

Streams of objects have further arrays with one entry a row: boxes, scores, labels, counts, frame_size; a classifier's
stream has ``probabilities``. In a stream of text the ids are the captions themselves, a row is a token, tokens have no
times, and ``sentence`` has one entry a caption. ``row_arrays`` and ``clip_arrays`` tell which arrays a stream has.
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
from ..storage import NOT_THERE

# 2 names a part's folder after its content. 3 seals spec.json, problems.json and the store's zarr.json too. 4 lets a
# part replace others, and says in its commit record how its arrays lie in their files.
FORMAT = 4
# Between what a record says and its sha256.
SEAL = ',\n "sha256": "'
# Files of a store itself.
FILES = {"zarr.json", "problems.json"}
# The file of a stream that ``index.py`` keeps.
INDEX = "clips.index"
# The file that a program holds while it rewrites parts of a stream.
LOCK = ".rewriting.lock"
# What the store, its streams and Zarr use as names themselves.
RESERVED = {*FILES, "c", "spec.json", "parts", "commits", INDEX}
# How the folder of a stream that is being removed begins.
REMOVED = ".removed-"
# Bytes of a stream's name. Folders and temporary files add to it, and file systems end at so many.
NAME_BYTES, FILE_NAME_BYTES = 100, 255


class StoreError(AmexError):
    """A store cannot be read or written as asked."""


class SpecMismatch(StoreError):
    """Rows made in one way were about to be mixed with rows made in another."""


class DamagedPart(StoreError):
    """Bytes on disk are not the bytes that were committed."""


class ReplacedPart(StoreError):
    """A part was replaced by another, or removed, while it was read."""


class LaterFormat(StoreError):
    """A store, or a file of it, was written by a later amex."""


class ClipNotThere(StoreError, KeyError):
    """A clip has no rows in a stream: it was never extracted, or it failed.

    Its message ends in the nearest ids, which are looked for when it is read: passing over clips stays fast.

    Args:
        clip_id: what was asked for.
        among: ids that may be meant.
    """

    def __init__(self, message: str, clip_id: str = "", among: Iterable[str] = ()) -> None:
        super().__init__(message)
        self._asked = clip_id, among

    def __str__(self) -> str:
        return super().__str__() + did_you_mean(*self._asked)

    def __reduce__(self) -> tuple[type[ClipNotThere], tuple[str]]:
        return type(self), (str(self),)


@dataclass(frozen=True, kw_only=True)
class ClipSource:
    """What a clip was computed from, as its commit record has it. None is a null, or what the record does not know.

    Attributes:
        recorded: whether the record has all of this. Imports and stores of earlier versions have the video at most.
        video: the file, below the videos folder; None where none was found.
        start: seconds on the video's own clock, None for the video's beginning.
        end: seconds, exclusive, None for the video's end.
        bytes: size of the file; None where that cannot be asked, as of a web server.
        modified: nanoseconds since 1970 at which the file was last modified.
        sha256: of the file, where the run was asked for it.
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
        """That of a clip's entry in a commit record."""
        return cls(recorded="start" in entry, **{name: entry[name] for name in SOURCE_FIELDS if name in entry})

    def is_of(self, start: float | None, end: float | None) -> bool:
        """Whether the clip was computed from these seconds, as far as the record tells."""
        return not self.recorded or (self.start, self.end) == (start, end)

    @property
    def entry(self) -> dict[str, Any]:
        """As a commit record has it: times where they were recorded, of the rest what is known."""
        times = {"start": self.start, "end": self.end} if self.recorded else {}
        known = {"video": self.video, "bytes": self.bytes, "modified": self.modified, "sha256": self.sha256}
        revision = {"revision": self.revision} if self.revision else {}
        return {**times, **{name: value for name, value in known.items() if value is not None}, **revision}


# Of rows that were not computed here, or by a version that did not say.
UNRECORDED = ClipSource(recorded=False)
SOURCE_FIELDS = ("video", "start", "end", "bytes", "modified", "sha256", "revision")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One entry of the quarantine ledger.

    Attributes:
        clip_id: the clip; in a stream of text, the caption.
        stage: ``find``, ``open``, ``decode``, ``sample``, ``encode`` or ``manifest``.
        reason: one line, as a person would say it.
        attempts: how many times this clip was tried.
        source: what it was to be computed from, as ``ClipSource.entry``; empty where there is no record of it.
    """

    clip_id: str
    video: str
    stage: str
    reason: str
    attempts: int = 1
    source: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def rank(self) -> tuple[int, int]:
        """Of several failures of a clip the highest counts."""
        return self.source.get("revision", 0), self.attempts


def canonical(record: Any) -> bytes:
    """The one JSON text of a record: sorted keys, no spaces, no NaN."""
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def fingerprint(spec: Mapping[str, Any]) -> str:
    """sha256 of a spec's canonical JSON: equal exactly when features were made in the same way."""
    return hashlib.sha256(canonical(spec)).hexdigest()


def row_arrays(spec: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """The arrays of a stream that have one entry a row: name -> (shape of an entry, dtype); ``values`` first.

    Features that were imported without times have none.
    """
    output = spec["output"]
    arrays = {"values": output, **output.get("arrays", {})}
    if not is_of_captions(spec) and output.get("times", True):
        arrays["times"] = {"shape": [2], "dtype": "float64"}
    return {name: (tuple(array["shape"]), array["dtype"]) for name, array in arrays.items()}


def clip_arrays(spec: dict[str, Any]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Those that have one entry a clip, or in a stream of text a caption: name -> (shape of an entry, dtype)."""
    arrays = spec["output"].get("clip_arrays", {})
    return {name: (tuple(array["shape"]), array["dtype"]) for name, array in arrays.items()}


def entry_bytes(arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> int:
    """Bytes of one entry of each of these arrays, before compression."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in arrays.values())


def is_of_captions(spec: dict[str, Any]) -> bool:
    """Whether a stream is of text: its ids are captions."""
    return spec["output"].get("of") == "captions"


def diff_specs(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (field, old value, new value) for every leaf in which two specs differ; dotted field names."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(set(old) | set(new)):
            yield from diff_specs(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path, old, new


def as_ids(clip_ids: Iterable[str]) -> tuple[str, ...]:
    """Clip ids as a tuple; raises StoreError for a text, whose letters would be taken for ids."""
    if isinstance(clip_ids, str):
        raise StoreError(f"clip ids are a list: [{clip_ids!r}]")
    return tuple(clip_ids)


def is_plain(name: str) -> bool:
    """Whether a name can be a folder's wherever a store lies, and leads nowhere else."""
    plain = re.fullmatch(r"[\w-][\w.-]*", name) and len(name.encode()) <= NAME_BYTES
    return bool(plain) and not name.startswith("__") and name.lower() not in RESERVED


def stream_path(store: Path, name: str) -> Path:
    """The folder of a stream. Raises StoreError if ``name`` cannot be a new stream's name, and there is no such stream.

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
    """Whether a folder of a store is a stream, or was one and has lost its spec.json."""
    return (folder / "spec.json").is_file() or any((folder / "commits").glob("*.json"))


def has_stream(store: Path, name: str) -> bool:
    """Whether a store has a stream of this name, be it one that no new stream may have; it leads nowhere else."""
    within = name and not name.startswith(".") and not {"/", "\0"} & set(name) and name not in FILES
    return bool(within) and len(name.encode(errors="surrogatepass")) <= FILE_NAME_BYTES and is_stream(store / name)


def check_stream(store: Path, name: str) -> None:
    """Raises StoreError unless a store has a stream of this name, be it one that cannot be read."""
    if not has_stream(store, name):
        names = stream_names(store)
        there = ", ".join(names) or "none yet"
        raise StoreError(f"no stream {name!r} in {store}; there is {there}{did_you_mean(name, names)}")


def stream_names(store: Path) -> list[str]:
    """The streams of a store, also those that cannot be read; none where there is no folder."""
    with contextlib.suppress(*NOT_THERE):
        return sorted(path.name for path in store.iterdir() if has_stream(store, path.name))
    return []


def check_arrays(spec: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError unless a spec's arrays have names of folders, shapes and dtypes."""
    for name, (shape, dtype) in {**row_arrays(spec), **clip_arrays(spec)}.items():
        if not is_plain(name):
            raise ValueError(f"{name!r} cannot be an array's name")
        np.empty((0, *shape), dtype)


def sealed(record: dict[str, Any]) -> str:
    """The text of a record: JSON whose last entry is the sha256 of all before it. An entry of a list has a line."""
    entries = (f" {json.dumps(name)}: {_lines(value)}" for name, value in record.items())
    text = "{\n" + ",\n".join(entries)
    return f'{text}{SEAL}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n  " + ",\n  ".join(map(_ENCODER.encode, value)) + "\n ]"
    return _ENCODER.encode(value)


# Without indentation JSON is written in C.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def check_seal(data: bytes) -> None:
    """Raises ValueError if a byte of a text by ``sealed`` has changed."""
    text, _, seal = data.rpartition(SEAL.encode())
    if seal != f'{hashlib.sha256(text).hexdigest()}"\n}}\n'.encode():
        raise ValueError("its checksum differs")


def folder_of(commit: dict[str, Any]) -> str:
    """Where below ``parts`` the part of a commit lies; format 1 called it after the part alone."""
    return commit.get("folder", commit["part"])


def folder_name(part: str, files: Mapping[str, Any]) -> str:
    """Where below ``parts`` a new part with these files lies: equal parts share a folder, others never do."""
    return f"{part}.{fingerprint(files)[:12]}"


def bytes_of(commit: Mapping[str, Any]) -> int:
    """Bytes of the files of a commit's part."""
    return sum(file["bytes"] for file in commit["files"].values())


def origins_of(commit: Mapping[str, Any], clips: int) -> list[tuple[str, int]]:
    """Of each clip of a part, by place, which rows it has: the same ones wherever they are rewritten.

    They are told by a digest of the part in which they were written first, and their place there.
    """
    if "origins" in commit:
        return [(mark, first + more) for mark, first, count in commit["origins"] for more in range(count)]
    mark = fingerprint(commit["files"])[:12]
    return [(mark, place) for place in range(clips)]


def free_name(part: str, taken: Collection[str]) -> str:
    """The name for a new part: ``part``, or another that is made of it as long as that is taken.

    The names of parts that were replaced are taken: a part of such a name would not count.
    """
    while part in taken:
        part = next_name(part)
    return part


def next_name(part: str) -> str:
    """The name that a part gets whose own is taken; it sorts beside it."""
    return f"{part.partition('-')[0]}-{hashlib.sha256(part.encode()).hexdigest()[:12]}"


def replaced_by(commit: dict[str, Any]) -> list[str]:
    """The parts that do not count any more once the part of a commit is there."""
    return commit.get("replaces", [])


def read_commit(path: Path) -> dict[str, Any]:
    """A commit record whose seal holds; raises DamagedPart otherwise."""
    return parse_commit(path, path.read_bytes())


def parse_commit(path: Path, data: bytes) -> dict[str, Any]:
    """``read_commit`` of the content of ``path``."""
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
    """Raises ValueError unless a record is of this part, names what is its own, and has the rows of its clips."""
    check_names(record, part)
    if part in replaced_by(record):
        raise ValueError("it replaces itself")
    rows = [clip["rows"] for clip in record["clips"]]
    if sum(rows) != record["rows"] or min(rows, default=0) < 0:
        raise ValueError("its clips do not have as many rows as the part")


def check_names(record: dict[str, Any], part: str) -> None:
    """Raises ValueError unless a record is of this part, and all that it names lies in the part's own folder."""
    if record["part"] != part:
        raise ValueError(f"it is the record of part {record['part']!r}")
    own, digest = folder_of(record)[: len(part)], folder_of(record)[len(part) :]
    if own != part or not re.fullmatch("" if record["format"] == 1 else r"\.[0-9a-f]{12}", digest):
        raise ValueError(f"its folder {folder_of(record)!r} is not one of this part")
    for name, file in record["files"].items():
        if {"", ".", ".."} & set(name.split("/")):
            raise ValueError(f"its file {name!r} is outside of the part")
        _ = file["bytes"], file["sha256"]
    _ = record.get("arrays", {}).keys()


def read_spec(path: Path) -> dict[str, Any]:
    """A stream's spec.json whose seal and fingerprint hold; raises StoreError otherwise."""
    try:
        data = path.read_bytes()
        record = json.loads(data)
        if record["fingerprint"] != fingerprint(record["spec"]):
            raise ValueError("the spec does not have the fingerprint beside it")
        if not is_unsealed(record) or record.keys() != {"format", "fingerprint", "spec", "provenance"}:
            check_seal(data)
        _check_format(path, record["format"])
        check_arrays(record["spec"])
    except NOT_THERE as error:
        raise StoreError(f"{path} is missing; {REPAIR_SPEC}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged ({_reason(error)}); {REPAIR_SPEC}") from error
    return record


def is_unsealed(record: dict[str, Any]) -> bool:
    """Whether a record other than a commit is of a format that had no seals."""
    return record["format"] in (1, 2)


def _check_format(path: Path, form: int) -> None:
    if form > FORMAT:
        raise LaterFormat(f"{path} has store format {form}, this amex reads {FORMAT}: upgrade amex")


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else first_line(error)


def group_text(about: dict[str, Any] | None = None) -> str:
    """The zarr.json of a group; of the store itself with what amex says ``about`` it, sealed."""
    seal = {} if about is None else {"amex": {**about, "sha256": fingerprint(about)}}
    return json.dumps({"attributes": seal, "zarr_format": 3, "node_type": "group"}, indent=2) + "\n"


def part_text(part: str, mark: str) -> str:
    """The zarr.json of a part's group. A part that was put in the place of another one is known by it."""
    attributes = {"amex": {"part": part, "fingerprint": mark}}
    return json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=2) + "\n"


def read_store(path: Path) -> dict[str, Any]:
    """What the zarr.json of the store at ``path`` says about it: ``format`` and ``created``.

    Raises:
        FileNotFoundError, NotADirectoryError: if there is nothing.
        StoreError: if it is not an amex store of a format that this amex reads, or its zarr.json is damaged or gone.
    """
    try:
        about = json.loads((path / "zarr.json").read_bytes())["attributes"]["amex"]
        seal = about.pop("sha256", None)
        if seal != (None if is_unsealed(about) else fingerprint(about)):
            raise ValueError("its checksum differs")
        _check_format(path, about["format"])
    except (*NOT_THERE, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        if stream_names(path):
            repair = f"run amex features verify {path} --repair"
            raise StoreError(f"{path / 'zarr.json'} is damaged ({_reason(error)}); {repair}") from error
        if isinstance(error, NOT_THERE):
            raise
        raise StoreError(f"{path} is not an amex store: its zarr.json does not say so") from error
    return about


def read_problems(path: Path) -> list[Failure]:
    """The ledger of manifest lines in problems.json, empty where there is none; raises StoreError if it is damaged."""
    try:
        data = path.read_bytes()
        record = json.loads(data)
        if isinstance(record, dict):
            check_seal(data)
            _check_format(path, record["format"])
            record = record["problems"]
        return [Failure(**entry) for entry in record]
    except NOT_THERE:
        return []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{path} is damaged ({_reason(error)}); the next amex extract writes it anew, and until then "
            f"amex features verify {path.parent} --repair removes it"
        ) from error


# How every message about damage ends.
REPAIR = (
    "run the same amex extract command with --repair to recompute this part alone, or remove the stream with "
    "amex features rm and import it again"
)
REPAIR_SPEC = (
    "run the same amex extract command with --repair to write it anew, or remove the stream with amex features rm and "
    "import it again"
)
