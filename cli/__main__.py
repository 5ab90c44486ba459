"""``python -m amex.cli`` is ``amex``."""

from . import main

main()
