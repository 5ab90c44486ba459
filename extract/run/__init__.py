"""An extraction run: plan the missing work, cut it into parts, and compute them on a Dask cluster.

``extract`` does all of it. ``plan`` finds the missing work, ``cluster`` and ``batch`` start the workers, ``part`` and
``captions`` run on a worker, ``display`` and ``shares`` report progress. Names are imported on first use, because
clusters start their workers before torch is imported.
"""

from __future__ import annotations

from ..lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
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
        "run_workers": "cluster",
        "choose_display": "display",
        "extract_rows": "in_memory",
        "Outcome": "job",
        "choose_on_workers": "job",
        "extract": "job",
        "security_of": "keys",
        "Report": "part",
        "Estimate": "plan",
        "Partition": "plan",
        "VideoFiles": "plan",
        "changed_text": "plan",
        "estimate": "plan",
        "existing_stream": "plan",
        "plan_tasks": "plan",
        "Shares": "shares",
        "shares_of": "shares",
    },
)
