"""The command line: one module a noun, one command a verb; ``main`` is the root.

Heavy imports are inside the commands, so that help and errors are printed at once: ``parameters`` checks values and
paths before them. ``options`` has the options that several commands share.
"""

from __future__ import annotations

import atexit
import gc
import io
import logging
import sys
from typing import Any

import click

from ..errors import AmexError
from .ablate import ablate
from .datasets import datasets
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .extract import extract
from .features import features
from .manifest import manifest
from .moments import moments
from .report import report
from .search import search
from .serve import serve
from .streams import streams
from .train import configs, train
from .worker import worker

__all__ = ["main"]


# Commands and groups that do not resume after an interrupt: they write nothing, or start over.
START_OVER = {
    *("card", "configs", "datasets", "doctor", "eval", "export", "failures", "info", "ls", "manifest", "moments"),
    *("report", "search", "serve", "show", "streams", "verify"),
}


class Group(click.Group):
    """A group whose commands end in one line on an AmexError (exit status 1) or an interrupt (130)."""

    def invoke(self, ctx: click.Context) -> Any:
        subcommand = ctx.args[:1]
        try:
            return super().invoke(ctx)
        except AmexError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            command = "the same command with --resume" if ctx.invoked_subcommand == "train" else "the same command"
            goes_on = f"; written results are kept, and {command} goes on from there"
            starts_over = START_OVER.intersection([ctx.invoked_subcommand, *subcommand])
            click.echo(f"stopped{'' if starts_over else goes_on}", err=True)
            sys.exit(130)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a command as click does; for a command that is typed without its group, suggest the group."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            groups = [name for name, command in self.commands.items() if args[0] in getattr(command, "commands", ())]
            if not groups:
                raise
            suggested = " or ".join(f"'{ctx.command_path} {name} {args[0]}'" for name in groups)
            raise click.UsageError(f"{error.message} Did you mean {suggested}?", ctx) from None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="amex", prog_name="amex")
def main() -> None:
    """Text-video retrieval: extract features once into one Zarr store, then train models from it.

    \b
    Try it:           amex demo
    Your own videos:  amex extract my_videos --store my.zarr
    Search them:      amex search my.zarr "a dog chases a ball"
    Known data sets:  amex extract --dataset youcook2
    Train a model:    amex train amenet --dataset youcook2
    How good it is:   amex eval data/youcook2/runs/amenet-official
    """
    atexit.register(gc.freeze)  # else Python searches all objects of torch for garbage at exit, for most of a second
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the run itself reports killed workers
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what the terminal cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")


COMMANDS = (
    demo,
    doctor,
    extract,
    streams,
    worker,
    datasets,
    manifest,
    features,
    train,
    evaluate,
    moments,
    ablate,
    search,
    serve,
    report,
    configs,
)
for command in COMMANDS:
    main.add_command(command)
