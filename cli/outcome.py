"""What ``amex extract`` prints: the estimate of a dry run, and the outcome of a run."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from ..errors import plural, printable
from .options import ExtractOptions


def dry_run(items: list, plans: list, device: str, options: ExtractOptions) -> None:
    """Print what a run would extract, and its estimated time and size."""
    from ..extract.limits import part_bounds
    from ..extract.run import Partition, VideoFiles, changed_text, estimate, existing_stream, plan_tasks
    from ..manifests import Clip, VideoFinder

    clips = [item for item in items if isinstance(item, Clip)]
    streams = {plan.name: existing_stream(options.store, plan.name) for plan in plans}
    keep = options.changed == "keep"
    reads_videos = any("sampling" in plan.spec for plan in plans)
    files = VideoFiles(VideoFinder(options.videos), keep_changed=keep) if reads_videos else None
    part_clips, part_minutes = part_bounds(
        device, options.part_clips, options.part_minutes, partitioned=options.partition is not None
    )
    bounds_of_parts = {"part_clips": part_clips, "part_minutes": part_minutes, "retry_failed": options.retry_failed}
    bounds_of_parts["partition"] = Partition(*options.partition) if options.partition else None
    bounds = {name: getattr(options, name) for name in ("feeders", "deadline", "longest_frame", "decoder")}
    costs = estimate(
        plan_tasks(clips, files, plans, streams, **bounds_of_parts), options.videos, plans, device, **bounds
    )
    changed = Counter(files.changed.values()) if files is not None else {}
    if options.as_json:
        click.echo(json.dumps(dataclasses.asdict(costs) | {"changed": changed}, indent=1))
        return
    text = f" and {plural(costs.captions, 'caption')}" if costs.captions else ""
    click.echo(
        f"would compute {costs.clips:,} of {plural(len(clips), 'clip')}{text}, {plural(costs.videos, 'video')} in "
        f"{plural(costs.parts, 'part')}"
    )
    if changed:
        click.echo(f"  {changed_text(changed, keep)}")
    if costs.missing_videos:
        click.echo(f"  not below {options.videos}, and so recorded as failed: {plural(costs.missing_videos, 'video')}")
    for note in files.finder.notes() if files is not None else ():
        click.echo(f"  {note}")
    print_problems([item for item in items if not isinstance(item, Clip)])
    for name, rows in costs.rows.items():
        click.echo(f"  {name}: about {plural(rows, 'row')}")
    click.echo(f"  about {duration(costs.video_hours)} of video, {decimal(costs.bytes)} before compression")
    which = "a GPU" if device != "cpu" else "the CPU"
    click.echo(
        f"  about {duration(costs.hours)} on one worker, timed on {which} of this machine just now; "
        f"{plural(costs.feeders, 'feeder')} would decode for {duration(costs.decoding_hours)} of it"
    )


def duration(hours: float) -> str:
    """Format a duration in hours, minutes or seconds."""
    for size, unit in ((1.0, "hours"), (1 / 60, "minutes")):
        if hours >= size:
            return f"{hours / size:,.1f} {unit}"
    return plural(round(hours * 3600), "second")


def print_problems(problems: Sequence[Any]) -> None:
    """Print the first lines of a list that are left out, with the reasons."""
    for problem in problems[:5]:
        click.echo(f"  left out: {problem}", err=True)
    if len(problems) > 5:
        click.echo(f"  left out: {len(problems) - 5:,} more", err=True)


def print_outcome(outcome: Any, store: Path, *, as_json: bool) -> None:
    """Print the result of a run: counts, where the time went, and what needs attention."""
    from ..extract.run import shares_of

    shares = shares_of(outcome.report.seconds)
    record = {
        "report": vars(outcome.report),
        "shares": dataclasses.asdict(shares),
        "streams": outcome.states,
        "problems": [str(problem) for problem in outcome.problems],
        "broken": outcome.broken,
        "repaired": outcome.repaired,
        "notes": outcome.notes,
        "absent": outcome.absent,
        "changed": outcome.changed,
        "exit_code": outcome.exit_code,
    }
    if as_json:
        click.echo(json.dumps(record, indent=1))
        return
    report = outcome.report
    text = f" and {plural(report.captions, 'caption')}" if report.captions else ""
    text += f" ({report.failed:,} failed)" if report.failed else ""
    click.echo(
        f"computed {plural(report.clips, 'clip')}{text}, {plural(report.rows, 'row')}, {decimal(report.bytes)}; "
        f"{plural(report.frames_decoded, 'frame')} decoded of {plural(report.videos, 'video')}"
    )
    if text := str(shares):
        click.echo(f"  time: {text}")
    for name, counts in outcome.states.items():
        click.echo(f"  {name}: " + ", ".join(f"{count:,} {state}" for state, count in counts.items()))
    for name in outcome.repaired:
        click.echo(f"  repaired: {name}")
    for note in outcome.notes:
        click.echo(f"  {note}")
    print_problems(outcome.problems)
    for part, error in outcome.broken.items():
        click.echo(printable(f"  part {part} broke: {error}"), err=True)
    for name, key in outcome.absent.items():
        count = outcome.states[name]["absent"]
        click.echo(
            f"  {name}: {count:,} absent (neither done nor failed), the first {key!r}: run the same command again",
            err=True,
        )
    if outcome.exit_code:
        click.echo(f"  see what failed and why: amex features failures {store}", err=True)
