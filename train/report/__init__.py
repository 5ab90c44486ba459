"""HTML pages of a run and of a search that need no network: figures, charts, pictures, every query."""

from .page import Run, write_report, write_results

__all__ = ["Run", "write_report", "write_results"]
