"""Write the pages of docs/reference that say what the code says: cli.md, configurations.md and streams.md.

python docs/generate.py            writes them
python docs/generate.py --check    exits with 1 if one is not current
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import click

FOLDER = Path(__file__).parent / "reference"
MADE = "<!-- Written by docs/generate.py; change the code, not this page. -->"
WIDTH = 100
# The commands in the order in which they are used, by what they are for.
GROUPS = {
    "Begin": ("demo", "doctor"),
    "Clips": ("datasets", "manifest"),
    "Features": ("extract", "streams", "worker", "features"),
    "Models": ("train", "configs", "eval", "moments", "ablate", "report"),
    "Search": ("search", "serve"),
}


def table(*rows: tuple[str, ...]) -> str:
    """A Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 118, break_on_hyphens=False, break_long_words=False)


def code(*names: str) -> str:
    return ", ".join(f"`{name}`" for name in names)


def cli() -> str:
    """Every command with its ``--help``."""
    from amex.cli import main
    from amex.cli.export import export

    sections = [
        MADE,
        "# Command line",
        paragraph("""
            Each command prints its part of this page with `--help`. Exit status: 0 success; 1 an error, in one line;
            2 wrong usage; 3 finished, but some clips failed; 130 interrupted.
        """),
        help_of(main, "amex", None),
    ]
    listed = [name for names in GROUPS.values() for name in names]
    assert sorted(listed) == sorted(main.commands), set(listed) ^ set(main.commands)
    context = click.Context(main, info_name="amex", **main.context_settings)
    for group, names in GROUPS.items():
        sections.append(f"## {group}")
        for name in names:
            for path, command, parent in walk(main.commands[name], name, context):
                sections += [f"### amex {path}", help_of(command, path.split()[-1], parent)]
            if name == "train":  # Click does not know of it: a word in the place of a configuration
                sections += ["### amex train export", help_of(export, "train export", context)]
    return "\n\n".join(sections) + "\n"


def walk(
    command: click.Command, path: str, parent: click.Context
) -> Iterator[tuple[str, click.Command, click.Context]]:
    """A command and those below it, each with its path and the context of its parent."""
    yield path, command, parent
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path.split()[-1], parent=parent)
        for name in command.list_commands(context):
            yield from walk(command.commands[name], f"{path} {name}", context)


def help_of(command: click.Command, name: str, parent: click.Context | None) -> str:
    command._help_option = None  # Click keeps the first one that it makes, from a context that may have lacked -h
    context = click.Context(
        command, info_name=name, parent=parent, **{**command.context_settings, "terminal_width": WIDTH}
    )
    return f"```text\n{command.get_help(context)}\n```"


def configurations() -> str:
    """The options of every model, and the configurations that come with amex."""
    from amex.train.config import CONFIGS, Config, known_configs, load_config
    from amex.train.options import SECTIONS, ModelOptions

    models = {}  # a class may have several names
    for name, section in SECTIONS.items():
        models.setdefault(section, []).append(name)
    sections = [
        MADE,
        "# Configurations",
        paragraph("""
            `amex train MODEL` takes a model with its defaults, `amex train NAME` one of the configurations below,
            `amex train FILE.py` one of yours. `--set SECTION.KEY=VALUE` changes a value of any of them.
            `amex configs MODEL` prints the options of a model, `amex configs NAME` a configuration. `auto` stands for a
            value that is chosen when a run begins, from the size of the training split.
        """),
        "## Configurations that come with amex",
    ]
    rows = []
    for name in known_configs():
        first = re.search(r'"""(.*?)(?:\n\n|""")', (CONFIGS / f"{name}.py").read_text(), re.DOTALL)[1]
        rows.append((code(name), code(load_config(name).model.name), " ".join(first.split())))
    sections.append(table(("name", "model", "what it is"), *rows))
    shared = {"objective": "what training minimises", "data": "what is trained on", "train": "how it is trained"}
    defaults = Config()
    for section, what in shared.items():
        values = getattr(defaults, section)
        sections += [f"## {section}", f"{sentence(what)}, for every model.", options(type(values), section)]
        if section == "objective":
            rows = [("model", "its defaults")]
            for model, names in models.items():
                own = {
                    f"{part}.{key}": "auto" if value is None else as_yaml(value)
                    for part, keys in model.section_defaults.items()
                    for key, value in keys.items()
                }
                rows.append((code(*names), code(*(f"{key}={value}" for key, value in own.items()))))
            sections.append("Models replace some defaults of these sections; a configuration overrides both:")
            sections.append(table(*rows))
    sections += [
        "## model",
        "Options of all models. The sections after this one add those of each model.",
        options(ModelOptions, "model"),
    ]
    for model, names in models.items():
        inherited = set(ModelOptions.model_fields) | {"name"}
        changed = {
            key
            for key, field in model.model_fields.items()
            if key not in inherited or field.default != getattr(ModelOptions.model_fields.get(key), "default", None)
        } - {"name"}
        sections += [f"### {' and '.join(names)}", sentence(first_line_of(model)), options(model, "model", changed)]
    return "\n\n".join(sections) + "\n"


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def first_line_of(thing: Any) -> str:
    return " ".join((thing.__doc__ or "").split("\n\n")[0].split())


def options(section: Any, name: str, only: set[str] | None = None) -> str:
    """A table of the options of a section of a configuration."""
    rows = [("option", "type", "default", "what it is")]
    for key, field in section.model_fields.items():
        if only is not None and key not in only:
            continue
        has_auto = any(
            "Auto" in repr(item) or getattr(item, "func", None) is auto_validator() for item in field.metadata
        )
        default = field.get_default(call_default_factory=True)
        shown = "auto" if default is None and has_auto else as_yaml(default)
        limits = [limit for item in field.metadata if (limit := bound(item))]
        kind = ", ".join([type_of(field.annotation, has_auto), *limits])
        rows.append((code(f"{name}.{key}"), kind, code(shown or '""'), field.description or ""))
    return table(*rows) if len(rows) > 1 else "It has no options of its own."


def as_yaml(value: Any) -> str:
    """A value as ``--set`` takes it."""
    return json.dumps(value).replace('"', "")


def auto_validator() -> Callable[[Any], Any]:
    from amex.train.config import Auto

    return Auto.func


def bound(item: Any) -> str:
    """One side of a range, of what pydantic keeps beside a field."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return next((f"{sign} {getattr(item, name):g}" for name, sign in signs.items() if hasattr(item, name)), "")


def type_of(annotation: Any, has_auto: bool) -> str:
    """A type in words."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return type_of(typing.get_args(annotation)[0], has_auto)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        parts = typing.get_args(annotation)
        return " or ".join("`auto`" if part is type(None) and has_auto else type_of(part, has_auto) for part in parts)
    if origin in (list, tuple):
        return f"list of {type_of(typing.get_args(annotation)[0], has_auto)}"
    if origin is dict:
        key, value = typing.get_args(annotation)
        return f"map of {type_of(key, has_auto)} to {type_of(value, has_auto)}"
    names = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "`null`"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def streams() -> str:
    """The streams that have names, the presets, the kinds of networks, the recipes."""
    from amex.extract.encoders import ALIASES, DEFAULT_MODELS, DEFAULT_PRESET, KINDS, NETWORKS, PRESETS, RECIPES

    def rate(preset: str) -> str:
        sampling = PRESETS[preset].sampling
        if sampling.frames == 1:
            return f"{sampling.fps:g} fps" if sampling.fps else "native rate"
        windows = f"{sampling.frames} frames every {sampling.stride}"
        steps = f", one of {sampling.step}" if sampling.step > 1 else ""
        return f"{f'{sampling.fps:g} fps' if sampling.fps else 'native rate'}, {windows}{steps}"

    network_rows = [
        (code(name), str(network.dim), rate(DEFAULT_PRESET[name]), code(DEFAULT_PRESET[name]), network.published.source)
        for name, network in NETWORKS.items()
    ]
    others = {**ALIASES, **DEFAULT_MODELS}
    preset_rows = []
    for name, preset in PRESETS.items():
        s = preset.sampling
        cells = (f"{s.fps:g}" if s.fps else "native", s.at if s.fps else "", str(s.frames), str(s.step), str(s.stride))
        preset_rows.append((code(name), *cells, preset.source))
    sections = [
        MADE,
        "# Streams",
        paragraph("""
            `--stream NAME` computes one stream: a kind of feature of every clip, frame, object or caption.
            `amex streams` prints these tables. [Extraction](../guides/extract.md) shows how to use them,
            [encoders](../guides/encoders.md) how to use any other network.
        """),
        "## Clips and frames",
        paragraph("""
            `D` is the length of a feature. Weights are downloaded once and checked against their published digest.
            Where the last column says `with --weights`, the publisher gives no digest: download the file and name it.
        """),
        table(("stream", "D", "samples", "preset", "weights"), *network_rows),
        paragraph("""
            `efficientnet_lite0`, `1` and `2` also store the probabilities of 1,000 classes. `--weights NAME=random:0`
            draws random weights, to try a pipeline without a download.
        """),
        "## Objects and text",
        table(("stream", "network"), *((code(name), code(network)) for name, network in others.items())),
        paragraph("""
            A stream of objects has at most 36 boxes a frame, one frame a second. A stream of text has a feature for
            each token, and a vector of the whole caption. `text_bert` with `--text-encoder minilm` needs no download.
        """),
        "## Any other network",
        table(("`--stream NAME=`", "network"), *((code(f"{name}:WHICH"), what) for name, what in KINDS.items())),
        "## Presets",
        paragraph("""
            A preset is a convention for sampling and transforming frames: `--preset NAME=PRESET`. A window has `frames`
            frames, `step` frames apart; windows start `stride` frames apart. A preset never changes under its name.
        """),
        table(("preset", "fps", "at", "frames", "step", "stride", "convention of"), *preset_rows),
        "## Recipes",
        "`--recipe NAME` takes all streams of a paper. [Recipes](recipes.md) says how close they are.",
        table(("recipe", "streams"), *((code(name), code(*recipe.streams)) for name, recipe in RECIPES.items())),
    ]
    return "\n\n".join(sections) + "\n"


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli, "configurations.md": configurations, "streams.md": streams}


def main() -> int:
    old = []
    for name, make in PAGES.items():
        text = make()
        path = FOLDER / name
        if not path.exists() or path.read_text() != text:
            old.append(name)
            if "--check" not in sys.argv:
                path.write_text(text)
    for name in old:
        print(f"docs/reference/{name} {'is not current' if '--check' in sys.argv else 'written'}")
    if old and "--check" in sys.argv:
        print("run: python docs/generate.py")
    return int(bool(old) and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
