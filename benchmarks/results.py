"""Makes docs/results.md, and what the models' pages say of claims, from benchmarks/results/*.json.

    pip install 'amex[bench]'
    python benchmarks/results.py                    # writes the pages
    python benchmarks/results.py --check            # says whether they are what it would write
    python benchmarks/results.py --train --sets SETS --work-dir WORK [--table NAME ...]

    python benchmarks/results.py --evaluated SET=SEED0.json,SEED1.json,SEED2.json --together SET=THREE.json

``--evaluated`` keeps figures that `amex eval --dsl --out` wrote of runs of `amex train amenet`, one a seed, and
``--together`` those of the runs evaluated as one. ``results.toml`` names tables, their rows and the claims about
them; ``results.md.j2`` has the text around them. With ``--train``, ``amex ablate`` trains what is missing of each
table, and its JSON is written again. SETS has the stores and manifests that ``results.toml`` names. Runs are kept in
WORK: the same command goes on. A run of the same version and configuration counts as done whatever the code was: give
a new WORK after a change of the code.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGE = DOCS / "results.md"
BEGIN, END = "<!-- claims of {}: written by benchmarks/results.py -->", "<!-- end of claims -->"
COLUMNS = ("t2v R@1", "t2v R@10", "v2t R@1", "v2t R@10", "rsum")


def plan() -> dict[str, Any]:
    """What ``results.toml`` says."""
    return tomllib.loads((HERE / "results.toml").read_text())


def train_table(name: str, table: dict[str, Any], claims: list[dict[str, Any]], sets: Path, work: Path) -> None:
    """Trains what is missing of a table, and writes its JSON."""
    import torch

    from amex import __version__
    from amex.features import open_store
    from amex.manifests import read_manifest
    from amex.train.ablate import Sources, ablate, spread
    from amex.train.ranks import Ranks

    sources = Sources(
        store=sets / table["store"], manifest=sets / table["manifest"], split="test", merged=table.get("merge", False)
    )
    rows: dict[str, dict[str, Any]] = {}
    ranks: dict[str, dict[int, Ranks]] = {}
    about: dict[str, Any] = {}
    for row in table["rows"]:
        settings = [*table.get("set", []), *row.get("set", [])]
        variant, seeds = row.get("variant", "default"), row.get("seeds", table["seeds"])
        folder = work / re.sub(r"[^A-Za-z0-9.]+", "-", "-".join([row["config"], *settings])).strip("-")
        trained = ablate(
            row["config"],
            settings=settings,
            seeds=seeds,
            only=[variant],
            sources=sources,
            work_dir=folder,
            say=lambda line: print(line, file=sys.stderr, flush=True),
        )[variant]["runs"]
        runs = {seed: trained[seed] for seed in seeds}
        ranks[row["name"]] = {
            seed: Ranks.load(folder / run["folder"] / f"ranks-{sources.name}.npz") for seed, run in runs.items()
        }
        last = next(iter(runs.values()))
        about = about or {key: last["coverage"][key] for key in ("clips", "captions")}
        found = spread([run["figures"] | logged(run) for run in runs.values()])
        rows[row["name"]] = {
            "config": row["config"],
            "variant": variant,
            "set": settings,
            "seeds": seeds,
            "parameters": last["parameters"],
            "seconds": round(sum(run["seconds"] for run in runs.values()) / len(runs), 1),
        } | {kind: rounded(figures) for kind, figures in found.items()}
    if "linear" in table:
        from linear import linear

        given = {"text": "text_bert", "logit": False, "merge": sources.merged} | table["linear"]
        for method, setting, result, placed in linear(
            open_store(sources.store), read_manifest(sources.manifest), **given
        ):
            ways = (("t2v", "text_to_video"), ("v2t", "video_to_text"))
            mean = {f"{way} R@{k}": result[key][f"R@{k}"] for way, key in ways for k in (1, 5, 10)}
            rows[method] = {"chosen": setting, "mean": rounded(mean | {"rsum": result["rsum"]})}
            ranks[method] = dict.fromkeys(table["seeds"], placed)
    first = next(iter(rows))
    for row, entry in rows.items():
        if row != first:
            entry["less first"] = differences(ranks[row], ranks[first])
    measured = [
        (claim, claim.get("figure", "rsum"), differences(ranks[claim["row"]], ranks[claim["against"]]))
        for claim in claims
        if claim["table"] == name
    ]
    record = {
        "split": "test",
        "merged": sources.merged,
        "seeds": table["seeds"],
        **about,
        "versions": {"amex": __version__, "torch": torch.__version__.split("+")[0]},
        "rows": rows,
        "claims": [
            {"claim": claim["id"], "figure": figure, "interval": found[figure]} for claim, figure, found in measured
        ],
    }
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)  # a list, a line
    (HERE / "results" / f"{name}.json").write_text(text + "\n")


def logged(run: dict[str, Any]) -> dict[str, float]:
    """What training logged at its last validation, by the names that objectives give."""
    return {f"train {name}": value for name, value in run["train"].items() if math.isfinite(value)}


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Figures as a file keeps them."""
    return {name: round(value, 3) for name, value in figures.items()}


def differences(ours: dict[int, Any], theirs: dict[int, Any]) -> dict[str, Any]:
    """By figure the difference with its bounds, over the seeds that both have."""
    from amex.train.ranks import compare

    seeds = sorted(ours.keys() & theirs.keys())
    intervals = compare([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return {"seeds": len(seeds)} | {name: [round(x, 2) for x in found] for name, found in intervals.items()}


def keep_evaluated(evaluated: list[str], together: list[str]) -> None:
    """Writes the figures of runs that were trained by name alone, by set, over what was kept of these sets."""
    from amex.train.ablate import spread

    path = HERE / "results" / "amenet_by_name.json"
    kept = json.loads(path.read_text()) if path.is_file() else {}
    for given in evaluated:
        name, _, files = given.partition("=")
        runs = [json.loads(Path(file).read_text()) for file in files.split(",")]
        found = spread([by_name_figures(run) for run in runs])
        about = {key: runs[0]["coverage"][key] for key in ("clips", "captions")} | {"merged": runs[0]["merged"]}
        kept[name] = {"runs": len(runs), **about} | {kind: rounded(figures) for kind, figures in found.items()}
    for given in together:
        name, _, file = given.partition("=")
        kept[name]["together"] = rounded(by_name_figures(json.loads(Path(file).read_text())))
    path.write_text(json.dumps(kept, indent=1) + "\n")


def by_name_figures(result: dict[str, Any]) -> dict[str, float]:
    """Of what `amex eval --dsl` wrote."""
    from amex.train.evaluate import flat

    wanted = {*COLUMNS, "swapped pairs"}
    return {name: value for name, value in flat(result).items() if name in wanted} | {"dsl rsum": result["dsl_rsum"]}


class Record:
    """What the JSON files of the tables hold, as a template asks for it."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.tables = {
            name: json.loads(path.read_text())
            for name in plan["tables"]
            if (path := HERE / "results" / f"{name}.json").is_file()
        }
        path = HERE / "results" / "amenet_by_name.json"
        self.by_name = json.loads(path.read_text()) if path.is_file() else {}

    def by_name_table(self) -> str:
        """A row each set, and one of its runs together."""
        figures = (*COLUMNS, "dsl rsum", "swapped pairs")
        lines = [f"| | {' | '.join(figures)} |", f"|---{'|---' * len(figures)}|"]
        for name, entry in self.by_name.items():
            merged = ", equal captions one query" if entry["merged"] else ""
            title = f"{name}: {entry['clips']:,} clips, {entry['captions']:,} captions{merged}"
            lines.append(f"| {title} | {' | '.join(cell(entry, figure) for figure in figures)} |")
            if "together" in entry:
                one = {"mean": entry["together"]}
                lines.append(f"| {name}: the runs as one | {' | '.join(cell(one, figure) for figure in figures)} |")
        return "\n".join(lines)

    def sources(self, table: str) -> str:
        """Of what and with what a table was measured, in a sentence or two."""
        found = self.tables[table]
        seeds = found["seeds"]
        several = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]} alone"
        merged = ", equal captions one query" if found["merged"] else ""
        versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        return (
            f"Split {found['split']}: a gallery of {found['clips']:,} clips, {found['captions']:,} captions{merged}; "
            f"{several}; {versions}. {found.get('note', '')}".strip()
        )

    def table(self, name: str) -> str:
        """A row each model or variant."""
        rows = self.tables[name]["rows"]
        first = next(iter(rows))
        figures = dict(zip(COLUMNS, COLUMNS, strict=True))
        if any("swapped pairs" in entry["mean"] for entry in rows.values()):
            figures["swapped pairs"] = "swapped pairs"
        figures |= self.plan["tables"][name].get("columns", {})
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            heading: lambda entry, figure=figure: cell(entry, figure) for heading, figure in figures.items()
        }
        columns[f"rsum less {first}"] = lambda entry: (
            interval(entry["less first"]["rsum"]) if "less first" in entry else ""
        )
        columns["parameters"] = lambda entry: f"{entry['parameters'] / 1e6:.2f} M" if "parameters" in entry else ""
        cells = {heading: [fill(entry) for entry in rows.values()] for heading, fill in columns.items()}
        cells = {heading: column for heading, column in cells.items() if any(column)}
        lines = [f"| | {' | '.join(cells)} |", f"|---{'|---' * len(cells)}|"]
        lines += [f"| {row} | {' | '.join(values)} |" for row, *values in zip(rows, *cells.values(), strict=True)]
        return "\n".join(lines)

    def commands(self, name: str) -> str:
        """What trains a table's rows by hand."""
        table = self.plan["tables"][name]
        merge = " --merge" if table.get("merge") else ""
        seeds = ",".join(map(str, table["seeds"]))
        by_call: dict[tuple[str, ...], list[str]] = {}
        for row in table["rows"]:
            settings = (*table.get("set", []), *row.get("set", []))
            by_call.setdefault((row["config"], *settings), []).append(row.get("variant", "default"))
        lines = []
        for (config, *settings), variants in by_call.items():
            words = [f"--store {table['store']}", f"--manifest {table['manifest']}", f"--work-dir runs/{config}"]
            words += [f"--seeds {seeds}{merge}", *(f"--variant {shlex.quote(variant)}" for variant in variants)]
            words += [f"--set {shlex.quote(setting)}" for setting in settings]
            lines.append(" \\\n    ".join(wrapped([f"amex ablate {config}", *words])))
        return "\n".join(lines)

    def verdicts(self, model: str) -> Iterator[tuple[dict[str, Any], list[float], str]]:
        """Each claim of a model that was measured, the difference with its bounds, and what that shows."""
        for claim in self.plan["claims"]:
            for found in self.tables.get(claim["table"], {}).get("claims", []):
                if (claim["model"], claim["id"], claim.get("figure", "rsum")) == (
                    model,
                    found["claim"],
                    found["figure"],
                ):
                    yield claim, found["interval"], verdict(found["interval"], falls=claim.get("falls", False))

    def claims(self, model: str) -> str:
        """A row each claim of a model."""
        lines = ["| claim | where | | figure | difference | |", "|---|---|---|---|---|---|"]
        for claim, bounds, shown in self.verdicts(model):
            cells = (
                claim["says"],
                self.plan["tables"][claim["table"]]["title"],
                f"{claim['row']} less {claim['against']}",
                claim.get("figure", "rsum"),
                interval(bounds),
                shown,
            )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def paragraph(self, model: str) -> str:
        """What of a model's claims does not hold here, and what does, for its page."""
        found: dict[str, dict[str, dict[str, list[str]]]] = {}
        for claim, _, shown in self.verdicts(model):
            places = found.setdefault(shown, {}).setdefault(claim["says"], {})
            named = places.setdefault(self.plan["tables"][claim["table"]]["title"], [])
            named += [claim["named"]] if "named" in claim else []
        if not found:
            return f"No claim about {self.plan['models'][model]} was measured with this version."
        starts = {"the opposite": "The opposite was measured of", "not shown": "Not shown here", "holds": "Holds here"}
        sentences = []
        for shown in filter(found.get, starts):
            parts = []
            for says, places in found[shown].items():
                where = (f"{title}: {', '.join(named)}" if named else title for title, named in places.items())
                parts.append(f"{says} ({'; '.join(where)})")
            sentences.append(f"**{starts[shown]}**: {'; '.join(parts)}.")
        return f"{' '.join(sentences)} See [what the papers claim](results.md#what-the-papers-claim)."


def cell(entry: dict[str, Any], figure: str) -> str:
    """As ``378.6 ± 8.3``, or with two digits what is small; empty where there is no such figure."""
    if figure not in entry["mean"]:
        return ""
    digits = 1 if entry["mean"][figure] >= 10 else 2
    spread = f" ± {entry['std'][figure]:.{digits}f}" if figure in entry.get("std", {}) else ""
    return f"{entry['mean'][figure]:.{digits}f}{spread}"


def interval(bounds: list[float]) -> str:
    """As ``+3.1 [-2.0, 8.2]``."""
    return "{:+.1f} [{:.1f}, {:.1f}]".format(*bounds)


def verdict(bounds: list[float], *, falls: bool = False) -> str:
    """What a difference with its bounds shows of a claim that it is above 0, or below."""
    _, low, high = bounds
    if low <= 0 <= high:
        return "not shown"
    return "holds" if (high < 0) == falls else "the opposite"


def wrapped(words: list[str], width: int = 100) -> list[str]:
    """Words joined to lines."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) < width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def filled(text: str, width: int = 120) -> str:
    """A paragraph in lines of a width; intervals are not broken."""
    import textwrap

    joined = re.sub(r"\[(\S+) (\S+)\]", "[\\1\N{NO-BREAK SPACE}\\2]", text)
    lines = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def pages(plan: dict[str, Any]) -> dict[Path, str]:
    """What the pages should say."""
    record = Record(plan)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    offered: dict[str, Callable[..., str]] = {
        "sources": lambda name: filled(record.sources(name)),
        "table": record.table,
        "commands": record.commands,
        "claims": record.claims,
    }
    titles = {model: title for model, title in plan["models"].items() if any(record.verdicts(model))}
    made = {
        PAGE: environment.get_template("results.md.j2").render(
            **offered, by_name=record.by_name, by_name_table=record.by_name_table(), tables=record.tables, models=titles
        )
    }
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text() if path != PAGE else made[PAGE]
        for model in plan["models"]:
            begin = BEGIN.format(model)
            if begin in text:
                before, rest = text.split(begin, 1)
                after = rest.split(END, 1)[1]
                text = made[path] = f"{before}{begin}\n{filled(record.paragraph(model))}\n{END}{after}"
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--evaluated", action="append", default=[], metavar="SET=JSON,...")
    parser.add_argument("--together", action="append", default=[], metavar="SET=JSON")
    parser.add_argument("--sets", type=Path)
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--table", action="append", dest="tables", help="only this one; repeat for more")
    given = parser.parse_args()
    said = plan()
    if given.evaluated or given.together:
        keep_evaluated(given.evaluated, given.together)
    if given.train:
        if given.sets is None or given.work_dir is None:
            parser.error("--train needs --sets and --work-dir")
        if unknown := set(given.tables or []) - said["tables"].keys():
            parser.error(f"results.toml has no table {unknown.pop()!r}; it has {', '.join(said['tables'])}")
        from amex.errors import AmexError

        for name, table in said["tables"].items():
            if not given.tables or name in given.tables:
                try:
                    train_table(name, table, said["claims"], given.sets, given.work_dir)
                except AmexError as error:
                    sys.exit(f"{name}: {error}")
    stale = [(path, text) for path, text in pages(said).items() if not path.is_file() or path.read_text() != text]
    for path, text in stale:
        if given.check:
            print(
                f"{path.relative_to(HERE.parent)} is not what benchmarks/results/*.json give: run {Path(__file__).name}"
            )
        else:
            path.write_text(text)
            print(f"written: {path.relative_to(HERE.parent)}")
    sys.exit(1 if given.check and stale else 0)


if __name__ == "__main__":
    main()
