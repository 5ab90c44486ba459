"""``amex features``: look at a store, take care of it, bring features in, take them out, share them."""

from __future__ import annotations

import click

from .care import features_compact, features_cp, features_merge, features_rm, features_verify
from .exchange import features_export, features_import
from .look import features_failures, features_info, features_ls, features_show
from .publish import features_card


@click.group()
def features() -> None:
    """Inspect and maintain a store; import and export features."""


for command in (
    features_info,
    features_ls,
    features_show,
    features_failures,
    features_verify,
    features_compact,
    features_merge,
    features_cp,
    features_rm,
    features_import,
    features_export,
    features_card,
):
    features.add_command(command)
