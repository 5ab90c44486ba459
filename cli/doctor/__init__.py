"""Whether a machine can do amex's work: every part is really tried, each check in a process of its own.

    for finding in examine(Path(".")):
        print(finding.state, finding.what, finding.found, finding.remedy)

Knows what to try, and what to do where it fails; nothing is installed, downloaded or left behind.
"""

from .checks import CHECKS, examine
from .command import doctor
from .findings import Finding

__all__ = ["CHECKS", "Finding", "doctor", "examine"]
