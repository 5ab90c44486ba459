"""Write docs/results.md, and the claims on the models' pages, from benchmarks/results/*.json.

    pip install 'amex[bench]'
    python benchmarks/results.py                    # write the pages
    python benchmarks/results.py --check            # check whether they are up to date
    python benchmarks/results.py --train --sets SETS --work-dir WORK [--table NAME ...]

    python benchmarks/results.py --evaluated SET=SEED0.json,SEED1.json,SEED2.json --together SET=THREE.json

``--evaluated`` stores figures that `amex eval --dsl --out` wrote for runs of `amex train amenet`, one file a seed;
``--together`` stores those of the runs as an ensemble. ``results.toml`` lists tables, their rows and claims about them;
``results.md.j2`` contains the text around them. With ``--train``, ``amex ablate`` trains the missing runs of each
table, and the table's JSON is rewritten. SETS contains the stores and manifests that ``results.toml`` names. WORK keeps
the runs, so the same command resumes. A run of the same version and configuration counts as done even if the code
changed: pass a new WORK after a change of the code.
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
    """Read ``results.toml``."""
    return tomllib.loads((HERE / "results.toml").read_text())


def train_table(name: str, table: dict[str, Any], claims: list[dict[str, Any]], sets: Path, work: Path) -> None:
    """Train the missing runs of a table, and write its JSON."""
    import torch

    from amex import __version__
    from amex.features import open_store
    from amex.manifests import read_manifest
    from amex.train.ablate import Sources, ablate, mean_and_std
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
        summary = mean_and_std([run["figures"] | logged(run) for run in runs.values()])
        rows[row["name"]] = {
            "config": row["config"],
            "variant": variant,
            "set": settings,
            "seeds": seeds,
            "parameters": last["parameters"],
            "seconds": round(sum(run["seconds"] for run in runs.values()) / len(runs), 1),
        } | {kind: rounded(figures) for kind, figures in summary.items()}
    if "linear" in table:
        from linear import linear

        options = {"text": "text_bert", "logit": False, "merge": sources.merged} | table["linear"]
        for method, setting, result, method_ranks in linear(
            open_store(sources.store), read_manifest(sources.manifest), **options
        ):
            directions = (("t2v", "text_to_video"), ("v2t", "video_to_text"))
            mean = {f"{name} R@{k}": result[key][f"R@{k}"] for name, key in directions for k in (1, 5, 10)}
            rows[method] = {"chosen": setting, "mean": rounded(mean | {"rsum": result["rsum"]})}
            ranks[method] = dict.fromkeys(table["seeds"], method_ranks)
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
            {"claim": claim["id"], "figure": figure, "interval": intervals[figure]}
            for claim, figure, intervals in measured
        ],
    }
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda match: f"[{' '.join(match[1].split())}]", text)  # a list on one line
    (HERE / "results" / f"{name}.json").write_text(text + "\n")


def logged(run: dict[str, Any]) -> dict[str, float]:
    """Return the training terms logged at the last validation, by name."""
    return {f"train {name}": value for name, value in run["train"].items() if math.isfinite(value)}


def rounded(figures: dict[str, float]) -> dict[str, float]:
    """Round figures for storage."""
    return {name: round(value, 3) for name, value in figures.items()}


def differences(ours: dict[int, Any], theirs: dict[int, Any]) -> dict[str, Any]:
    """Return the difference of each figure with its bounds, over common seeds."""
    from amex.train.ranks import compare_ranks

    seeds = sorted(ours.keys() & theirs.keys())
    intervals = compare_ranks([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return {"seeds": len(seeds)} | {name: [round(x, 2) for x in bounds] for name, bounds in intervals.items()}


def store_evaluated(evaluated: list[str], together: list[str]) -> None:
    """Store figures of runs that were trained by name alone, by data set; replace earlier figures of these sets."""
    from amex.train.ablate import mean_and_std

    path = HERE / "results" / "amenet_by_name.json"
    records = json.loads(path.read_text()) if path.is_file() else {}
    for argument in evaluated:
        name, _, files = argument.partition("=")
        runs = [json.loads(Path(file).read_text()) for file in files.split(",")]
        summary = mean_and_std([by_name_figures(run) for run in runs])
        about = {key: runs[0]["coverage"][key] for key in ("clips", "captions")} | {"merged": runs[0]["merged"]}
        records[name] = {"runs": len(runs), **about} | {kind: rounded(figures) for kind, figures in summary.items()}
    for argument in together:
        name, _, file = argument.partition("=")
        records[name]["together"] = rounded(by_name_figures(json.loads(Path(file).read_text())))
    path.write_text(json.dumps(records, indent=1) + "\n")


def by_name_figures(result: dict[str, Any]) -> dict[str, float]:
    """Select figures from a result of `amex eval --dsl`."""
    from amex.train.evaluate import short_figures

    wanted = {*COLUMNS, "swapped pairs"}
    return {name: value for name, value in short_figures(result).items() if name in wanted} | {
        "dsl rsum": result["dsl_rsum"]
    }


class Record:
    """The contents of the tables' JSON files, formatted for the template."""

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
        """Return a table with a row for each data set, and one for the ensemble of its runs."""
        figures = (*COLUMNS, "dsl rsum", "swapped pairs")
        lines = [f"| | {' | '.join(figures)} |", f"|---{'|---' * len(figures)}|"]
        for name, entry in self.by_name.items():
            merged = ", equal captions one query" if entry["merged"] else ""
            title = f"{name}: {entry['clips']:,} clips, {entry['captions']:,} captions{merged}"
            lines.append(f"| {title} | {' | '.join(cell(entry, figure) for figure in figures)} |")
            if "together" in entry:
                ensemble = {"mean": entry["together"]}
                cells = " | ".join(cell(ensemble, figure) for figure in figures)
                lines.append(f"| {name}: the runs together | {cells} |")
        return "\n".join(lines)

    def sources(self, table: str) -> str:
        """Describe in a sentence or two what a table was measured on, and with which versions."""
        record = self.tables[table]
        seeds = record["seeds"]
        seed_range = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]} only"
        merged = ", equal captions one query" if record["merged"] else ""
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        return (
            f"Split {record['split']}: a gallery of {record['clips']:,} clips, {record['captions']:,} captions{merged}"
            f"; {seed_range}; {versions}. {record.get('note', '')}".strip()
        )

    def table(self, name: str) -> str:
        """Return a table with a row for each model or variant."""
        rows = self.tables[name]["rows"]
        first = next(iter(rows))
        figures = dict(zip(COLUMNS, COLUMNS, strict=True))
        if any("swapped pairs" in entry["mean"] for entry in rows.values()):
            figures["swapped pairs"] = "swapped pairs"
        figures |= self.plan["tables"][name].get("columns", {})
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            heading: lambda entry, figure=figure: cell(entry, figure) for heading, figure in figures.items()
        }
        columns[f"rsum minus {first}"] = lambda entry: (
            interval(entry["less first"]["rsum"]) if "less first" in entry else ""
        )
        columns["parameters"] = lambda entry: f"{entry['parameters'] / 1e6:.2f} M" if "parameters" in entry else ""
        cells = {heading: [fill(entry) for entry in rows.values()] for heading, fill in columns.items()}
        cells = {heading: column for heading, column in cells.items() if any(column)}
        lines = [f"| | {' | '.join(cells)} |", f"|---{'|---' * len(cells)}|"]
        lines += [f"| {row} | {' | '.join(values)} |" for row, *values in zip(rows, *cells.values(), strict=True)]
        return "\n".join(lines)

    def commands(self, name: str) -> str:
        """Return the commands that train a table's rows."""
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
        """Yield each measured claim of a model, the difference with its bounds, and the verdict."""
        for claim in self.plan["claims"]:
            for measured in self.tables.get(claim["table"], {}).get("claims", []):
                if (claim["model"], claim["id"], claim.get("figure", "rsum")) == (
                    model,
                    measured["claim"],
                    measured["figure"],
                ):
                    yield claim, measured["interval"], verdict(measured["interval"], falls=claim.get("falls", False))

    def claims(self, model: str) -> str:
        """Return a table with a row for each claim of a model."""
        lines = ["| claim | data set | rows | figure | difference | result |", "|---|---|---|---|---|---|"]
        for claim, bounds, shown in self.verdicts(model):
            cells = (
                claim["says"],
                self.plan["tables"][claim["table"]]["title"],
                f"{claim['row']} minus {claim['against']}",
                claim.get("figure", "rsum"),
                interval(bounds),
                shown,
            )
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def paragraph(self, model: str) -> str:
        """Return a paragraph for a model's page: which claims hold here, and which do not."""
        tables_of: dict[str, dict[str, dict[str, list[str]]]] = {}
        for claim, _, shown in self.verdicts(model):
            places = tables_of.setdefault(shown, {}).setdefault(claim["says"], {})
            named = places.setdefault(self.plan["tables"][claim["table"]]["title"], [])
            named += [claim["named"]] if "named" in claim else []
        if not tables_of:
            return f"No claim about {self.plan['models'][model]} was measured with this version."
        starts = {"contradicted": "Contradicted here", "not shown": "Not shown here", "holds": "Holds here"}
        sentences = []
        for shown in filter(tables_of.get, starts):
            parts = []
            for says, places in tables_of[shown].items():
                where = (f"{title}: {', '.join(named)}" if named else title for title, named in places.items())
                parts.append(f"{says} ({'; '.join(where)})")
            sentences.append(f"**{starts[shown]}**: {'; '.join(parts)}.")
        return f"{' '.join(sentences)} See [what the papers claim](../results.md#what-the-papers-claim)."


def cell(entry: dict[str, Any], figure: str) -> str:
    """Format a figure as ``378.6 ± 8.3``, below 10 with two digits; empty if the entry lacks it."""
    if figure not in entry["mean"]:
        return ""
    digits = 1 if entry["mean"][figure] >= 10 else 2
    deviation = f" ± {entry['std'][figure]:.{digits}f}" if figure in entry.get("std", {}) else ""
    return f"{entry['mean'][figure]:.{digits}f}{deviation}"


def interval(bounds: list[float]) -> str:
    """Format bounds as ``+3.1 [-2.0, 8.2]``."""
    return "{:+.1f} [{:.1f}, {:.1f}]".format(*bounds)


def verdict(bounds: list[float], *, falls: bool = False) -> str:
    """Judge a claim that a difference is above 0 (``falls``: below 0) by its bounds."""
    _, low, high = bounds
    if low <= 0 <= high:
        return "not shown"
    return "holds" if (high < 0) == falls else "contradicted"


def wrapped(words: list[str], width: int = 100) -> list[str]:
    """Join words to lines."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + len(word) < width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def filled(text: str, width: int = 120) -> str:
    """Wrap a paragraph to a width without breaking intervals."""
    import textwrap

    joined = re.sub(r"\[(\S+) (\S+)\]", "[\\1\N{NO-BREAK SPACE}\\2]", text)
    lines = textwrap.wrap(joined, width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def pages(plan: dict[str, Any]) -> dict[Path, str]:
    """Return the contents that the pages should have."""
    record = Record(plan)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    functions: dict[str, Callable[..., str]] = {
        "sources": lambda name: filled(record.sources(name)),
        "table": record.table,
        "commands": record.commands,
        "claims": record.claims,
    }
    titles = {model: title for model, title in plan["models"].items() if any(record.verdicts(model))}
    contents = {
        PAGE: environment.get_template("results.md.j2").render(
            **functions,
            by_name=record.by_name,
            by_name_table=record.by_name_table(),
            tables=record.tables,
            models=titles,
        )
    }
    for path in sorted(DOCS.rglob("*.md")):
        text = path.read_text() if path != PAGE else contents[PAGE]
        for model in plan["models"]:
            begin = BEGIN.format(model)
            if begin in text:
                before, rest = text.split(begin, 1)
                after = rest.split(END, 1)[1]
                text = contents[path] = f"{before}{begin}\n{filled(record.paragraph(model))}\n{END}{after}"
    return contents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--evaluated", action="append", default=[], metavar="SET=JSON,...")
    parser.add_argument("--together", action="append", default=[], metavar="SET=JSON")
    parser.add_argument("--sets", type=Path)
    parser.add_argument("--work-dir", type=Path)
    parser.add_argument("--table", action="append", dest="tables", help="only this one; repeat for more")
    args = parser.parse_args()
    contents = plan()
    if args.evaluated or args.together:
        store_evaluated(args.evaluated, args.together)
    if args.train:
        if args.sets is None or args.work_dir is None:
            parser.error("--train needs --sets and --work-dir")
        if unknown := set(args.tables or []) - contents["tables"].keys():
            parser.error(f"results.toml has no table {unknown.pop()!r}; it has {', '.join(contents['tables'])}")
        from amex.errors import AmexError

        for name, table in contents["tables"].items():
            if not args.tables or name in args.tables:
                try:
                    train_table(name, table, contents["claims"], args.sets, args.work_dir)
                except AmexError as error:
                    sys.exit(f"{name}: {error}")
    stale = [(path, text) for path, text in pages(contents).items() if not path.is_file() or path.read_text() != text]
    for path, text in stale:
        if args.check:
            print(f"{path.relative_to(HERE.parent)} is out of date: run {Path(__file__).name}")
        else:
            path.write_text(text)
            print(f"written: {path.relative_to(HERE.parent)}")
    sys.exit(1 if args.check and stale else 0)


if __name__ == "__main__":
    main()
