"""Numbers that random cells speak against are not handed on without a word: replay gives them again, if it can."""

from collections.abc import Callable
from dataclasses import replace

from causal_tracing.errors import EngineNote, warn
from causal_tracing.patching.job import Job
from causal_tracing.patching.measure import Numbers
from causal_tracing.results.spot_checks import apart


def rechecked(job: Job, work: Callable[[Job], Numbers]) -> tuple[Job, Numbers]:
    """What the work gives of the job; of the same on replay where its spot checks are apart by more than rounding.

    Where they still are, or there is nothing plainer, the numbers stand with a warning: no cell can be trusted further.
    """
    found = work(job)
    against = apart(found.spot_checks)
    # Nothing is plainer than replay, and a backend of a model's own is the only one that there is.
    if against and job.backend.describe().engine == "packed":
        note = f"The packed engine is wrong here: {against}. All was run again on replay, which is slower."
        warn(note, EngineNote)
        job = job.on_replay(note)
        again = work(job)
        found = replace(again, spot_checks={**again.spot_checks, "rerun": against})
        against = apart(found.spot_checks)
    if against:
        engine = job.backend.describe().engine
        note = (
            f"What {job.model.name} gives depends on what is run beside it ({engine}): {against}. No effect of this "
            "trace is known better than that."
        )
        warn(note, EngineNote)
    return job, found
