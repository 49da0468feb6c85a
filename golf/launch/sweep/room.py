"""Jobs that need not be started, since what they would leave is too large."""

from __future__ import annotations

from golf.common.errors import GolfError
from golf.launch.sweep.job import SweepJob


def too_large(job: SweepJob) -> str:
    """Why a job's artifact will be over its limit, or nothing: where it may fit, where it will be made to
    (`quant.fit`), and where its bytes are known after the run alone. `over` is put down."""
    from golf.launch.work.forecast import forecast

    limit, fit = job.config["budget"]["artifact_bytes"], (job.config["quant"] or {}).get("fit")
    if isinstance(fit, int) and fit <= limit:
        return ""
    try:
        found = forecast(job.config)
    except GolfError:
        return ""
    if found.least + found.code <= limit:
        return ""
    job.over = found.artifact / limit - 1.0
    return (
        f"not run: its artifact is forecast to take {found.artifact:,} bytes, {-found.left:,} over the limit "
        "(sweep.forecast=false runs it)"
    )
