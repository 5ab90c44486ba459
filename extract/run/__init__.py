"""A run: what is left to do, cut into parts, and a Dask cluster that does them.

``extract`` is the whole of it. ``plan`` says what is left, ``cluster`` and ``batch`` start the workers, ``part`` and
``captions`` are what a worker does, ``display`` and ``shares`` show it. What the room offers is imported when it is
first asked for: parts need torch, and clusters start before that is imported.
"""

from __future__ import annotations

from ..lazy import offer

__getattr__, __all__ = offer(
    __name__,
    {
        "BATCH": "batch",
        "Jobs": "batch",
        "job_script": "batch",
        "jobs_folder": "batch",
        "check_videos": "check",
        "Workers": "cluster",
        "allocation": "cluster",
        "first_task": "cluster",
        "gpus_of": "cluster",
        "local": "cluster",
        "remote": "cluster",
        "serve": "cluster",
        "choose_display": "display",
        "Outcome": "job",
        "choose_with_workers": "job",
        "extract": "job",
        "security_of": "keys",
        "Report": "part",
        "Estimate": "plan",
        "Partition": "plan",
        "VideoFiles": "plan",
        "changed_text": "plan",
        "estimate": "plan",
        "existing": "plan",
        "plan_tasks": "plan",
        "Shares": "shares",
        "shares_of": "shares",
    },
)
