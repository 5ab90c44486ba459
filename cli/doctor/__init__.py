"""Check whether amex works on a machine: every part is really used, each check in a process of its own.

    for finding in examine(Path(".")):
        print(finding.state, finding.what, finding.found, finding.remedy)

Nothing is installed, downloaded or left behind.
"""

from .checks import CHECKS, examine
from .command import doctor
from .findings import Finding

__all__ = ["CHECKS", "Finding", "doctor", "examine"]
