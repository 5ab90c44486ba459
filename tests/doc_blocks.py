"""The fenced blocks of the documentation.

Blocks of ``sh`` and ``python`` run in a test. A comment on the line directly before the fence, which readers do not
see, changes that:

- ``<!-- not run: REASON -->``: the block is not run, because it needs something that tests lack, such as a cluster;
- ``<!-- exit status: N -->``: the block ends with status N, because it shows an error;
- ``<!-- stop at: TEXT -->``: the block is interrupted, as by Ctrl-C, once it has printed TEXT.

A block whose fence has ``title="NAME"`` is not run: its content is written to the file NAME.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUN = {"sh", "python"}
SHOWN = {"text", "csv", "json", "yaml", "toml", "sql", "html", "dockerfile"}
FENCE = re.compile(r"(?P<indent> *)(?P<fence>```+|~~~+) *(?P<language>[\w+-]*)(?P<more>.*)")
COMMENT = re.compile(r"<!-- (?P<kind>not run|exit status|stop at): (?P<value>\S.*?) -->")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block.

    Attributes:
        place: page and line, as ``docs/start.md:12``.
        language: the first word after the fence.
        title: the file to write it to, or "".
        code: the content, without the indentation of the fence.
        comments: kind of the comment (``not run``, ``exit status``, ``stop at``) -> its value.
        problem: an error in the fence or its comment, or "".
    """

    place: str
    language: str
    title: str
    code: str
    comments: dict[str, str]
    problem: str

    @property
    def runs(self) -> bool:
        return self.language in RUN and not self.title and "not run" not in self.comments


def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page in order, also indented ones."""
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        opening = FENCE.fullmatch(lines[number])
        number += 1
        if not opening:
            continue
        start, indent = number, len(opening["indent"])
        while number < len(lines) and lines[number].strip() != opening["fence"]:
            number += 1
        code = [line[indent:] if not line[:indent].strip() else line for line in lines[start:number]]
        comment = COMMENT.fullmatch(lines[start - 2].strip()) if start > 1 else None
        title = re.search(r'title="([^"]+)"', opening["more"])
        problem = ""
        if number == len(lines):
            problem = "the fence is never closed"
        elif opening["language"] not in RUN | SHOWN:
            problem = f"the language {opening['language']!r} is none of {sorted(RUN | SHOWN)}"
        elif start > 1 and "<!--" in lines[start - 2] and not comment:
            problem = f"the comment before it is none of those that {Path(__file__).name} describes"
        yield Block(
            place=f"{page.relative_to(ROOT)}:{start}",
            language=opening["language"],
            title=title[1] if title else "",
            code="".join(f"{line}\n" for line in code),
            comments={comment["kind"]: comment["value"]} if comment else {},
            problem=problem,
        )
        number += 1


def commands(code: str) -> Iterator[list[str]]:
    """Yield the words of each amex command of a shell block, without ``amex``. Shell variables become 0."""
    for line in code.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|()<>")
        lexer.commenters = "#"
        lexer.whitespace_split = True
        command: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set(";&|()"):
                if "amex" in command[:3] and not command[0].startswith("_AMEX_COMPLETE"):  # after `timeout 5`, `A=1`
                    yield command[command.index("amex") + 1 :]
                command = []
            else:
                command.append(re.sub(r"\$\{?\w+\}?", "0", word))
