"""Why a measured step may be the machine's rather than the recipe's: a host that sets the pace, others at work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SPREAD = 1.15
"""How much slower a step of the slow tenth may be than one of the fast tenth; on a GPU of one's own it is 1.03."""
ENOUGH_STEPS = 10


def waited_ms() -> float | None:
    """How long this thread has waited for a core so far; None where the system does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e6
    except (OSError, ValueError, IndexError):
        return None


def load() -> dict[str, float | int]:
    """The machine's mean number of running threads in the last minute, and its cores."""
    try:
        mean = os.getloadavg()[0]
    except OSError:
        mean = 0.0
    return {"load_average": mean, "cores": os.cpu_count() or 1}


def doubts(record: Mapping[str, Any]) -> list[str]:
    """What a reader of `golf bench`'s record must know before believing it, in sentences."""
    step, low, high, found = record["step_ms"], record["step_ms_p10"], record["step_ms_p90"], list[str]()
    host = sum((record.get("host_ms") or {}).values())
    if host > 0.9 * step:
        way = "" if record["cuda_graphs"] or record["micro_steps"] > 1 else ", or runtime.cuda_graphs=true"
        found.append(
            f"the host sets the pace: it takes {host:.1f} ms to queue a step of {step:.1f}, and the device may wait "
            f"for it. A faster or idler one gives a lower figure; less of it need larger passes{way}"
        )
    if record["measured_steps"] >= ENOUGH_STEPS and high > SPREAD * low:
        late = record["phases_ms"]["data"]
        why = f"data came late ({late:.1f} ms a step)" if late > 0.1 * step else "something else has worked here too"
        found.append(f"steps differ: one in ten took under {low:.1f} ms, one in ten over {high:.1f}: {why}")
    if (late := record.get("data_wait_ms") or 0.0) > 0.02 * step:
        found.append(f"each step waited {late:.1f} ms for data: its disk, or what reads it, is too slow")
    waited = record.get("host_wait_ms")
    if waited is not None and waited > 0.02 * step:
        found.append(f"each step waited {waited:.1f} ms for a core of this machine: others use them")
    if record["load_average"] > record["cores"]:
        found.append(f"the machine is busy: a load of {record['load_average']:.0f} on {record['cores']} cores")
    return found
