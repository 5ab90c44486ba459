"""The command line: one file a noun, one thin command a verb; ``main`` is all of it.

``options`` has what commands share. Heavy imports stay inside the commands, so that help and errors come at once.
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
from .extract import extract, streams
from .features import features
from .manifest import manifest
from .moments import moments
from .report import report
from .search import search
from .serve import serve
from .train import configs, train
from .worker import worker

__all__ = ["main"]


# Commands, and groups of them, that write nothing, or that begin anew after an interrupt.
START_OVER = {
    *("card", "configs", "datasets", "doctor", "eval", "export", "failures", "info", "ls", "manifest", "moments"),
    *("report", "search", "serve", "show", "streams", "verify"),
}


class Group(click.Group):
    """A group whose commands end in one line and exit status 1 on an AmexError, 130 when interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        words = ctx.args[:1]  # in groups the command
        try:
            return super().invoke(ctx)
        except AmexError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            again = "the same command with --resume" if ctx.invoked_subcommand == "train" else "the same command"
            goes_on = f"; what is written stays, and {again} goes on from there"
            starts_over = START_OVER.intersection([ctx.invoked_subcommand, *words])
            click.echo(f"stopped{'' if starts_over else goes_on}", err=True)
            sys.exit(130)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, which names commands of like spelling; and also those that are typed without their group."""
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:
            groups = [name for name, command in self.commands.items() if args[0] in getattr(command, "commands", ())]
            if not groups:
                raise
            meant = " or ".join(f"'{ctx.command_path} {name} {args[0]}'" for name in groups)
            raise click.UsageError(f"{error.message} Did you mean {meant}?", ctx) from None


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="amex", prog_name="amex")
def main() -> None:
    """Text-video retrieval: features extracted once into one Zarr store, models trained from it alone.

    \b
    Try it:           amex demo
    Your own videos:  amex extract my_videos --store my.zarr
    Search them:      amex search my.zarr "a dog chases a ball"
    Known data sets:  amex extract --dataset youcook2
    Train a model:    amex train amenet --dataset youcook2
    How good it is:   amex eval data/youcook2/runs/amenet-official
    """
    atexit.register(
        gc.freeze
    )  # else Python looks for garbage among all that torch made as it ends, for most of a second
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # workers that are killed are reported by the run
    if isinstance(sys.stdout, io.TextIOWrapper):  # what a terminal's encoding lacks is escaped, as on standard error
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
