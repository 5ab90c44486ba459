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
@click.option("--store", "folder", default=".", help="The folder of the store.  [default: here]")
@click.option(
    "--s3", "bucket", default="", metavar="ADDRESS", help="Also check access to s3://BUCKET or s3://BUCKET/NAME."
)
@json_option
def doctor(folder: str, bucket: str, as_json: bool) -> None:
    """Check this machine, and say how to fix what fails.

    Every check does what extraction and training do, in its own process: encode and decode videos, compute on each GPU,
    start a worker, write to the disk. Nothing is downloaded, and nothing is left behind.

    \b
    amex doctor
    amex doctor --store /scratch/my.zarr --s3 s3://bucket/features

    Exit status: 0 the essential parts work; 3 an essential part is missing or broken.
    """
    from . import CHECKS, examine

    if "://" in folder:
        raise click.UsageError(f"--store takes a folder: give an address as --s3 {folder}")
    if bucket and "://" not in bucket:
        raise click.UsageError(f"--s3 takes an address such as s3://BUCKET/NAME, not {bucket!r}")
    with progress_bar() as bar:
        task = bar.add_task("trying", total=len(CHECKS))
        findings = examine(Path(folder), bucket, progress=lambda: bar.advance(task))
    failures = [finding for finding in findings if finding.essential and finding.state != "ok"]
    if as_json:
        record = {"ok": not failures, "checks": [dataclasses.asdict(finding) for finding in findings]}
        click.echo(json.dumps(record, indent=1))
    else:
        print_findings(findings)
        if failures:
            click.echo(f"amex cannot work here: {', '.join(finding.what for finding in failures)}", err=True)
        else:
            others = sum(finding.state != "ok" for finding in findings)
            click.echo(f"the essential parts work; {plural(others, 'optional part')} missing or broken")
    sys.exit(3 if failures else 0)


def print_findings(findings: list) -> None:
    """Print a table: subject, state, details, and below them the remedy."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "", box=None, show_header=False)
    for finding in findings:
        style = {"ok": "green", "missing": "yellow", "broken": "red"}[finding.state]
        table.add_row(finding.what, Text(finding.state, style), printable(finding.found))
        if finding.remedy:
            table.add_row("", "", f"-> {printable(finding.remedy)}")
    console().print(table)
