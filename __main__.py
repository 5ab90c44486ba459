"""``python -m amex`` is ``amex``."""

from .cli import main

main()
