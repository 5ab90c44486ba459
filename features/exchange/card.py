"""A README for a store that is shared: what is in it, how it was made, how to read it, what it may be used for.

It begins with the YAML that hubs of data sets read. Equal stores have equal cards.
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
from ...storage import NOT_THERE, reachable, storage_at, write_text
from ..reader import Store, Stream
from ..schema import StoreError, bytes_of, clip_arrays, is_of_captions, row_arrays

# Begins the line that tells a card from what somebody wrote.
MARK = "<!-- made by amex features card; sha256 of all other lines: "
# Characters of a setting that a card shows; longer ones are in spec.json.
SHOWN = 300
# From how many clips on a data set is in which category, as hubs call them.
SIZES = {"n<1K": 0, "1K<n<10K": 10**3, "10K<n<100K": 10**4, "100K<n<1M": 10**5, "1M<n<10M": 10**6, "10M<n<100M": 10**7}
FILL_IN = "**To be filled in**"


def describe_store(store: Store) -> dict[str, Any]:
    """The facts of a card.

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
    """What a card says of a stream."""
    decoders: Counter[str] = Counter()
    versions: dict[str, set[str]] = defaultdict(set)
    size = hosts = 0
    for commit in stream.commits.values():
        decoders.update(clip["decoder"] for clip in commit["clips"] if "decoder" in clip)
        # A part that others were joined to has theirs too.
        for written in (commit["run"].get("versions", {}), *commit["run"].get("made_of", {}).get("versions", ())):
            for library, version in written.items():
                versions[library].add(version)
        size += bytes_of(commit)
        hosts += "host" in commit["run"]
    rows = stream.index.rows[stream.index.clips]
    return {
        "of": "captions" if is_of_captions(stream.spec) else "clips",
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
        "versions": {library: sorted(those) for library, those in sorted(versions.items())},
        "weights": stream.provenance.get("weights", ""),
        "names_hosts": bool(hosts),
        "fingerprint": stream.fingerprint,
        "spec": stream.spec,
        "first": _first(stream),
    }


def _first(stream: Stream) -> dict[str, Any] | None:
    """A clip that has rows, to be read as an example, with its part."""
    for part in sorted(stream.commits):
        for clip in stream.commits[part]["clips"]:
            clip_id, revision = clip["clip_id"], clip.get("revision", 0)
            if clip["rows"] and stream.state(clip_id) == "done" and stream.source(clip_id).revision == revision:
                return {"part": part, "clip_id": clip_id}
    return None


def checksum(store: Store) -> str:
    """One sha256 for all that a store holds, since commit records have the sha256 of every file of their part.

    It is that of the lines ``sha256sum`` prints of each stream's spec.json and of the commit records that count, sorted
    by their paths.
    """
    lines = []
    for name, stream in store.items():
        files = {"spec.json": (stream.path / "spec.json").read_bytes()}
        for file, data in storage_at(stream.path / "commits").read_matching("*.json"):
            if file.removesuffix(".json") in stream.commits:
                files[f"commits/{file}"] = data
        lines += [(f"{name}/{file}", hashlib.sha256(data).hexdigest()) for file, data in files.items()]
    digest = hashlib.sha256()
    for path, mark in sorted(lines, key=lambda line: line[0].encode(errors="surrogateescape")):
        digest.update(f"{mark}  {path}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def write_card(text: str, path: Path, *, force: bool = False) -> None:
    """Writes a card.

    Raises:
        StoreError: if what is at ``path`` is no card, or one that somebody has edited, unless ``force``.
    """
    with reachable(path, but=(UnicodeDecodeError,)):
        try:
            ours = is_card(path.read_text(encoding="utf-8"))
        except NOT_THERE:
            ours = True
        except UnicodeDecodeError:
            ours = False
        if not ours and not force:
            raise StoreError(
                f"{path} was written or edited by hand: --force replaces it, --out FILE writes the card elsewhere"
            )
        write_text(path, text)


def is_card(text: str) -> bool:
    """Whether a text is a card that nobody has edited."""
    lines = text.splitlines(keepends=True)
    marks = [line for line in lines if line.startswith(MARK)]
    return len(marks) == 1 and marks[0] == _mark("".join(line for line in lines if line != marks[0]))


def _mark(rest: str) -> str:
    return f"{MARK}{hashlib.sha256(rest.encode()).hexdigest()} -->\n"


def render_card(facts: dict[str, Any]) -> str:
    """A card as Markdown.

    Args:
        facts: from ``describe_store``. A stream may also have ``input``, what its network looked at in words, and
            ``known_weights``, with ``source``, ``url`` and ``licence``.
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
        f"# {plain(facts['name'])}",
        f"{FILL_IN}: which videos these are.",
        "Features of videos in one amex store, which is Zarr v3. No frames are in it.",
        "## Streams",
        "\n".join(["| stream | clips | rows | a row | MB | empty | failed |", "|---|---|---|---|---|---|---|"])
        + "".join(f"\n{_row(name, stream)}" for name, stream in streams.items()),
        "Empty clips were decoded, and are shorter than a window. Failed ones have no rows: `amex features failures` "
        "says why. A row is a window or a frame, of text a token.",
        "## How they were made",
    ]
    for name, stream in streams.items():
        sections += [f"### {code(name)}", "\n".join(made_lines(stream))]
    sections += ["## How to read it", *_examples(facts), "## Checksum", *_checked(facts)]
    return [*sections, "## Licences", *_licences(facts)]


def _row(name: str, stream: dict[str, Any]) -> str:
    values, states = stream["arrays"]["values"], stream["states"]
    of = " captions" if stream["of"] == "captions" else ""
    return (
        f"| {code(name)} | {_count(stream):,}{of} | {stream['rows']:,} | {values['dtype']} {values['shape']} | "
        f"{stream['bytes'] / 1e6:,.2f} | {states['empty']:,} | {states['failed']:,} |"
    )


def made_lines(stream: Mapping[str, Any]) -> list[str]:
    """How a stream was made, from what ``describe_stream`` says of it: a list of Markdown."""
    spec = {name: setting for name, setting in stream["spec"].items() if name != "output"}
    lines = [f"- input: {stream['input']}"] if stream.get("input") else []
    for name, setting in spec.items():
        text = setting if isinstance(setting, str) else json.dumps(setting, ensure_ascii=False)
        lines.append(f"- {plain(name.replace('_', ' '))}: {code(text) if len(text) <= SHOWN else 'see `spec.json`'}")
    lines.append(f"- weights: {_weights(stream)}")
    beside = [f"{code(name)} {a['dtype']} {a['shape']}" for name, a in stream["arrays"].items() if name != "values"]
    lines.append(f"- beside the features: {', '.join(beside) or 'nothing'}")
    if stream["labels"]:
        lines.append(f"- labels: {stream['labels']:,} classes, named in `spec.json`")
    if stream["decoders"]:
        lines.append("- decoded by " + ", ".join(f"{plain(name)}: {n:,}" for name, n in stream["decoders"].items()))
    if stream["cut_off_by_damage"]:
        lines.append(f"- kept as far as their video is undamaged: {plural(stream['cut_off_by_damage'], 'clip')}")
    written = [f"{plain(library)} {', '.join(map(plain, those))}" for library, those in stream["versions"].items()]
    lines.append(f"- written by: {'; '.join(written) or 'not recorded'}")
    lines.append(f"- fingerprint: `{stream['fingerprint']}`")
    return lines


def _weights(stream: Mapping[str, Any]) -> str:
    """Where weights came from; of a file its name, as directories are nobody's business."""
    known = stream.get("known_weights") or {}
    parts = [known.get("source") or code(stream["weights"].rstrip("/").split("/")[-1] or "not recorded")]
    parts += [f"<{known['url']}>"] if known.get("url") else []
    return ", ".join([*parts, *(["recognised by their name alone"] if known.get("by") == "name" else [])])


def _examples(facts: dict[str, Any]) -> list[str]:
    firsts = {name: stream["first"] for name, stream in facts["streams"].items() if stream["first"]}
    if not firsts:
        return ["It has no clips yet."]
    name, first = next(iter(firsts.items()))
    store, clip_id = facts["name"], first["clip_id"]
    timed = "times" in facts["streams"][name]["arrays"]
    ours = [
        "from amex.features import open_store",
        "",
        f"stream = open_store({store!r})[{name!r}]",
        f"rows = stream[{clip_id!r}]",
        "print(rows.values.shape" + (", rows.times)  # seconds" if timed else ")"),
    ]
    plain = [
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
        _block("python", ours),
        "With zarr-python alone. Parts that a commit record names in `replaces` do not count any more.",
        _block("python", plain),
    ]


def _checked(facts: dict[str, Any]) -> list[str]:
    return [
        f"`{facts['checksum']}`",
        "is the sha256 over the specs and commit records of all streams. Commit records have the sha256 of every file "
        "of their part: `amex features verify` compares them, and `amex features card --json` prints the checksum. In "
        "the folder of the store, if nothing is left of interrupted runs, so does",
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
        lines.append(f"| {code(name)} | {_weights(stream)} | {plain(licence) if licence else FILL_IN} |")
    holds = ["the ids of clips, the names and times of modification of video files"]
    holds += ["captions word for word"] if any(stream["of"] == "captions" for stream in streams.values()) else []
    holds += ["the names of computers that wrote it"] if any(s["names_hosts"] for s in streams.values()) else []
    return [
        "\n".join(lines),
        f"{FILL_IN}: the licence of the videos, and whether it allows to share what is computed from them. amex knows "
        "neither.",
        f"The store has {', and '.join(holds)}. It has no frames, and its features are not anonymous all the same: "
        "those of one person or place are alike.",
    ]


def _block(language: str, lines: list[str]) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", "\n".join(lines))), default=0))
    return "\n".join([f"{fence}{language}", *lines, fence])


def code(text: str) -> str:
    """A text as code in a line or a cell of a table."""
    text = printable(text).replace("|", "\\|")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def plain(text: str) -> str:
    """A text in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(text))
