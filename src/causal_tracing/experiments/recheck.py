"""Numbers that random cells speak against are not handed on: all is run again on replay, and it is said."""

import warnings
from collections.abc import Callable
from dataclasses import replace

from causal_tracing.errors import EngineNote
from causal_tracing.patching.job import Job
from causal_tracing.patching.measure import Numbers
from causal_tracing.results.spot_checks import apart


def rechecked(job: Job, work: Callable[[Job], Numbers], *, stacklevel: int) -> tuple[Job, Numbers]:
    """What the work gives of the job; of the same on replay where its spot checks are apart by more than rounding."""
    found = work(job)
    against = apart(found.spot_checks)
    if not against or job.backend.describe().engine != "packed":
        return job, found
    note = f"The packed engine is wrong here: {against}. All was run again on replay, which is slower."
    warnings.warn(note, EngineNote, stacklevel=stacklevel + 1)
    job = job.on_replay(note)
    again = work(job)
    return job, replace(again, spot_checks={**again.spot_checks, "rerun": against})
