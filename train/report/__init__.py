"""Pages of a run and of a search, for a browser without a network: figures, charts, pictures, every query."""

from .page import Run, write_report, write_results

__all__ = ["Run", "write_report", "write_results"]
