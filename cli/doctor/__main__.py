"""The process of one check: ``python -m amex.cli.doctor MODULE FUNCTION FOLDER BUCKET``; findings are JSON lines."""

import importlib
import os
import sys
from pathlib import Path

from .checks import report
from .findings import Subject

module, function, folder, bucket = sys.argv[1:]
# Libraries may print to standard output: only findings go there.
findings = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)
check = getattr(importlib.import_module(f"{__package__}.{module}"), function)
for finding in check(Subject(folder=Path(folder), bucket=bucket)):
    print(report(finding), file=findings, flush=True)
# Do not wait for threads of libraries, such as one that waits for a server.
os._exit(0)
