"""Write the card (README) of a shared store: content, production, reading, licences.

It begins with the YAML header that dataset hubs read. Equal stores have equal cards.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import plural, printable
from ...storage import MISSING_ERRORS, reachable, storage_at, write_text
from ..reader import Store, Stream
from ..schema import StoreError, bytes_of, clip_arrays, is_caption_stream, row_arrays

# Beginning of the line that distinguishes an unedited card from other text.
MARK = "<!-- made by amex features card; sha256 of all other lines: "
# Settings with more characters are not shown; they are in spec.json.
SHOWN = 300
# Size categories of dataset hubs, and the number of clips from which each applies.
SIZES = {"n<1K": 0, "1K<n<10K": 10**3, "10K<n<100K": 10**4, "100K<n<1M": 10**5, "1M<n<10M": 10**6, "10M<n<100M": 10**7}
FILL_IN = "**To be filled in**"


def describe_store(store: Store) -> dict[str, Any]:
    """Return the facts for a card.

    Raises:
        StoreError: if a spec or a commit record is damaged.
    """
    with reachable(store.path):
        return {
            "name": store.path.absolute().name,
            "checksum": checksum(store),
            "streams": {name: describe_stream(stream) for name, stream in store.items()},
        }


def describe_stream(stream: Stream) -> dict[str, Any]:
    """Return the facts of a stream for a card."""
    decoders: Counter[str] = Counter()
    versions: dict[str, set[str]] = defaultdict(set)
    size = hosts = 0
    for commit in stream.commits.values():
        decoders.update(clip["decoder"] for clip in commit["clips"] if "decoder" in clip)
        # A part that was joined from others also has their versions.
        for written in (commit["run"].get("versions", {}), *commit["run"].get("made_of", {}).get("versions", ())):
            for library, version in written.items():
                versions[library].add(version)
        size += bytes_of(commit)
        hosts += "host" in commit["run"]
    rows = stream.index.rows[stream.index.clips]
    return {
        "of": "captions" if is_caption_stream(stream.spec) else "clips",
        "states": {
            "done": int((rows > 0).sum()),
            "empty": int((rows == 0).sum()),
            "failed": len(stream.failures),
        },
        "cut_off_by_damage": len(stream.cut_off()),
        "rows": stream.rows,
        "bytes": size,
        "arrays": {
            name: {"shape": list(shape), "dtype": dtype}
            for name, (shape, dtype) in {**row_arrays(stream.spec), **clip_arrays(stream.spec)}.items()
        },
        "labels": len(stream.labels),
        "decoders": dict(sorted(decoders.items())),
        "versions": {library: sorted(numbers) for library, numbers in sorted(versions.items())},
        "weights": stream.provenance.get("weights", ""),
        "names_hosts": bool(hosts),
        "fingerprint": stream.fingerprint,
        "spec": stream.spec,
        "first": _first(stream),
    }


def _first(stream: Stream) -> dict[str, Any] | None:
    """Return a clip with rows, and its part, for the reading example."""
    for part in sorted(stream.commits):
        for clip in stream.commits[part]["clips"]:
            clip_id, revision = clip["clip_id"], clip.get("revision", 0)
            if clip["rows"] and stream.state(clip_id) == "done" and stream.source(clip_id).revision == revision:
                return {"part": part, "clip_id": clip_id}
    return None


def checksum(store: Store) -> str:
    """Return one sha256 for the whole store. It covers all files, because commit records have the sha256 of each file.

    It is the sha256 of the lines that ``sha256sum`` prints for the spec.json of each stream and the commit records that
    count, sorted by path.
    """
    lines = []
    for name, stream in store.items():
        files = {"spec.json": (stream.path / "spec.json").read_bytes()}
        for file, data in storage_at(stream.path / "commits").read_matching("*.json"):
            if file.removesuffix(".json") in stream.commits:
                files[f"commits/{file}"] = data
        lines += [(f"{name}/{file}", hashlib.sha256(data).hexdigest()) for file, data in files.items()]
    digest = hashlib.sha256()
    for path, sha256 in sorted(lines, key=lambda line: line[0].encode(errors="surrogateescape")):
        digest.update(f"{sha256}  {path}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def write_card(text: str, path: Path, *, force: bool = False) -> None:
    """Write a card.

    Args:
        force: overwrite any existing file.

    Raises:
        StoreError: if the file at ``path`` is not a card, or an edited card, unless ``force``.
    """
    with reachable(path, but=(UnicodeDecodeError,)):
        try:
            replaceable = is_card(path.read_text(encoding="utf-8"))
        except MISSING_ERRORS:
            replaceable = True
        except UnicodeDecodeError:
            replaceable = False
        if not replaceable and not force:
            raise StoreError(
                f"{path} was written or edited by hand: --force replaces it, --out FILE writes the card elsewhere"
            )
        write_text(path, text)


def is_card(text: str) -> bool:
    """Return whether a text is an unedited card."""
    lines = text.splitlines(keepends=True)
    marks = [line for line in lines if line.startswith(MARK)]
    return len(marks) == 1 and marks[0] == _mark("".join(line for line in lines if line != marks[0]))


def _mark(rest: str) -> str:
    return f"{MARK}{hashlib.sha256(rest.encode()).hexdigest()} -->\n"


def render_card(facts: dict[str, Any]) -> str:
    """Return a card as Markdown.

    Args:
        facts: from ``describe_store``. A stream may also have ``input``, a description of the network's input, and
            ``known_weights`` with ``source``, ``url`` and ``licence``.
    """
    head, body = _head(facts), "\n\n".join(_sections(facts)) + "\n"
    return head + _mark(head + "\n" + body) + "\n" + body


def _head(facts: dict[str, Any]) -> str:
    entries = max((_count(stream) for stream in facts["streams"].values()), default=0)
    size = [category for category, least in SIZES.items() if entries >= least][-1]
    return (
        "---\n"
        "license:  # to be filled in: under which licence you share these features\n"
        f"pretty_name: {json.dumps(facts['name'])}\n"
        "tags:\n- video\n- features\n- text-video-retrieval\n- zarr\n- amex\n"
        f"size_categories:\n- {size}\n"
        "---\n"
    )


def _count(stream: dict[str, Any]) -> int:
    return stream["states"]["done"] + stream["states"]["empty"]


def _sections(facts: dict[str, Any]) -> list[str]:
    streams = facts["streams"]
    sections = [
        f"# {escape(facts['name'])}",
        f"{FILL_IN}: which videos these are.",
        "Features of videos in one amex store, which is Zarr v3. No frames are in it.",
        "## Streams",
        "\n".join(["| stream | clips | rows | a row | MB | empty | failed |", "|---|---|---|---|---|---|---|"])
        + "".join(f"\n{_row(name, stream)}" for name, stream in streams.items()),
        "Empty clips were decoded but are shorter than a window. Failed clips have no rows: `amex features failures` "
        "lists the reasons. A row is a window or a frame, in a stream of text a token.",
        "## How they were made",
    ]
    for name, stream in streams.items():
        sections += [f"### {code_span(name)}", "\n".join(provenance_lines(stream))]
    sections += ["## How to read it", *_examples(facts), "## Checksum", *_checked(facts)]
    return [*sections, "## Licences", *_licences(facts)]


def _row(name: str, stream: dict[str, Any]) -> str:
    values, states = stream["arrays"]["values"], stream["states"]
    of = " captions" if stream["of"] == "captions" else ""
    return (
        f"| {code_span(name)} | {_count(stream):,}{of} | {stream['rows']:,} | {values['dtype']} {values['shape']} | "
        f"{stream['bytes'] / 1e6:,.2f} | {states['empty']:,} | {states['failed']:,} |"
    )


def provenance_lines(stream: Mapping[str, Any]) -> list[str]:
    """Return how a stream was made, from the facts of ``describe_stream``: the lines of a Markdown list."""
    spec = {name: setting for name, setting in stream["spec"].items() if name != "output"}
    lines = [f"- input: {stream['input']}"] if stream.get("input") else []
    for name, setting in spec.items():
        text = setting if isinstance(setting, str) else json.dumps(setting, ensure_ascii=False)
        lines.append(
            f"- {escape(name.replace('_', ' '))}: {code_span(text) if len(text) <= SHOWN else 'see `spec.json`'}"
        )
    lines.append(f"- weights: {_weights(stream)}")
    beside = [
        f"{code_span(name)} {a['dtype']} {a['shape']}" for name, a in stream["arrays"].items() if name != "values"
    ]
    lines.append(f"- beside the features: {', '.join(beside) or 'nothing'}")
    if stream["labels"]:
        lines.append(f"- labels: {stream['labels']:,} classes, named in `spec.json`")
    if stream["decoders"]:
        lines.append("- decoded by " + ", ".join(f"{escape(name)}: {n:,}" for name, n in stream["decoders"].items()))
    if stream["cut_off_by_damage"]:
        lines.append(f"- kept as far as their video is undamaged: {plural(stream['cut_off_by_damage'], 'clip')}")
    writers = [f"{escape(library)} {', '.join(map(escape, v))}" for library, v in stream["versions"].items()]
    lines.append(f"- written by: {'; '.join(writers) or 'not recorded'}")
    lines.append(f"- fingerprint: `{stream['fingerprint']}`")
    return lines


def _weights(stream: Mapping[str, Any]) -> str:
    """Return the origin of the weights; for a file only its name, because directories are private."""
    origin = stream.get("known_weights") or {}
    parts = [origin.get("source") or code_span(stream["weights"].rstrip("/").split("/")[-1] or "not recorded")]
    parts += [f"<{origin['url']}>"] if origin.get("url") else []
    return ", ".join([*parts, *(["recognised by their name alone"] if origin.get("by") == "name" else [])])


def _examples(facts: dict[str, Any]) -> list[str]:
    firsts = {name: stream["first"] for name, stream in facts["streams"].items() if stream["first"]}
    if not firsts:
        return ["It has no clips yet."]
    name, first = next(iter(firsts.items()))
    store, clip_id = facts["name"], first["clip_id"]
    timed = "times" in facts["streams"][name]["arrays"]
    with_amex = [
        "import amex",
        "",
        f"stream = amex.open_store({store!r})[{name!r}]",
        f"rows = stream[{clip_id!r}]",
        "print(rows.values.shape" + (", rows.times)  # seconds" if timed else ")"),
    ]
    zarr_lines = [
        "import json",
        "from pathlib import Path",
        "",
        "import zarr",
        "",
        f"stream = Path({store!r}) / {name!r}",
        f"commit = json.loads((stream / 'commits' / {first['part'] + '.json'!r}).read_text())",
        "part = stream / 'parts' / commit['folder']",
        "ids = [clip['clip_id'] for clip in commit['clips']]",
        "offsets = zarr.open_array(part / 'offsets', mode='r')[:]",
        f"index = ids.index({clip_id!r})",
        "values = zarr.open_array(part / 'values', mode='r')[offsets[index] : offsets[index + 1]]",
    ]
    return [
        "With amex:",
        _block("python", with_amex),
        "With zarr-python only. Parts that a commit record lists in `replaces` no longer count.",
        _block("python", zarr_lines),
    ]


def _checked(facts: dict[str, Any]) -> list[str]:
    return [
        f"`{facts['checksum']}`",
        "is the sha256 over the specs and commit records of all streams. Commit records have the sha256 of every file "
        "of their part: `amex features verify` compares them, and `amex features card --json` prints the checksum. If "
        "the store has no leftovers of interrupted runs, this command prints it too, in the folder of the store:",
        _block(
            "sh",
            [
                "printf '%s\\n' */spec.json */commits/*.json | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum",
            ],
        ),
    ]


def _licences(facts: dict[str, Any]) -> list[str]:
    streams = facts["streams"]
    lines = ["| stream | weights | licence of the weights |", "|---|---|---|"]
    for name, stream in streams.items():
        licence = (stream.get("known_weights") or {}).get("licence")
        lines.append(f"| {code_span(name)} | {_weights(stream)} | {escape(licence) if licence else FILL_IN} |")
    contents = ["the ids of clips, the names and modification times of video files"]
    contents += ["captions word for word"] if any(stream["of"] == "captions" for stream in streams.values()) else []
    contents += ["the names of computers that wrote it"] if any(s["names_hosts"] for s in streams.values()) else []
    return [
        "\n".join(lines),
        f"{FILL_IN}: the licence of the videos, and whether it allows you to share features computed from them. amex "
        "knows neither.",
        f"The store has {', and '.join(contents)}. It has no frames, but its features are not anonymous: features of "
        "the same person or place are similar.",
    ]


def _block(language: str, lines: list[str]) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", "\n".join(lines))), default=0))
    return "\n".join([f"{fence}{language}", *lines, fence])


def code_span(text: str) -> str:
    """Return a text as an inline code span, also valid in a table."""
    text = printable(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def escape(text: str) -> str:
    """Return a text with all Markdown and HTML characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(text))
