"""``amex doctor``: what of this machine works, and what to do about the rest."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click

from ...console import console, progress_bar
from ...errors import plural, printable
from ..options import json_option


@click.command()
@click.option("--store", "folder", default=".", help="Where a store is, or is to be.  [default: here]")
@click.option("--s3", "bucket", default="", metavar="ADDRESS", help="Also list this: s3://BUCKET or s3://BUCKET/NAME.")
@json_option
def doctor(folder: str, bucket: str, as_json: bool) -> None:
    """Try all that amex needs here, and say what to do.

    Every check really does what it is about, in a process of its own: encode and decode videos, compute on each GPU,
    start a worker, write to the disk. Nothing is downloaded, and nothing is left behind.

    Exit status: 0 what is essential works; 3 something essential is missing or broken.
    """
    from . import CHECKS, examine

    if "://" in folder:
        raise click.UsageError(f"--store takes a folder: give an address as --s3 {folder}")
    if bucket and "://" not in bucket:
        raise click.UsageError(f"--s3 takes an address such as s3://BUCKET/NAME, not {bucket!r}")
    with progress_bar() as bar:
        task = bar.add_task("trying", total=len(CHECKS))
        findings = examine(Path(folder), bucket, progress=lambda: bar.advance(task))
    wanting = [finding for finding in findings if finding.essential and finding.state != "ok"]
    if as_json:
        record = {"ok": not wanting, "checks": [dataclasses.asdict(finding) for finding in findings]}
        click.echo(json.dumps(record, indent=1))
    else:
        print_findings(findings)
        if wanting:
            click.echo(f"amex cannot work here: {', '.join(finding.what for finding in wanting)}", err=True)
        else:
            others = sum(finding.state != "ok" for finding in findings)
            click.echo(f"what is essential works; {plural(others, 'optional thing')} missing or broken")
    sys.exit(3 if wanting else 0)


def print_findings(findings: list) -> None:
    """A table: what, its state, what there is, and below that what to do."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "", box=None, show_header=False)
    for finding in findings:
        style = {"ok": "green", "missing": "yellow", "broken": "red"}[finding.state]
        table.add_row(finding.what, Text(finding.state, style), printable(finding.found))
        if finding.remedy:
            table.add_row("", "", f"-> {printable(finding.remedy)}")
    console().print(table)
