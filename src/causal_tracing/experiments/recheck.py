"""Numbers that random cells speak against are not handed on: replay gives them again, at last run by run."""

from collections.abc import Callable
from dataclasses import replace

from causal_tracing.errors import EngineNote, warn
from causal_tracing.patching.job import Job
from causal_tracing.patching.measure import Numbers
from causal_tracing.results.spot_checks import apart

ALONE = "All was run again on replay, each run in a forward of its own, which is slower."


def rechecked(job: Job, work: Callable[[Job], Numbers]) -> tuple[Job, Numbers]:
    """What the work gives of the job; of the same on replay where its spot checks are apart by more than rounding.

    Where they still are, each run is made in a forward of its own, so that none depends on what is beside it. Where
    that does not mend it, or there is nothing plainer, the numbers stand with a warning.
    """
    found = work(job)
    against = apart(found.spot_checks)
    # Nothing is plainer than replay, and a backend of a model's own is the only one that there is.
    if against and job.backend.describe().engine == "packed":
        note = f"The packed engine is wrong here: {against}. All was run again on replay, which is slower."
        warn(note, EngineNote)
        job = job.on_replay(note)
        found = _again(work(job), against)
        against = apart(found.spot_checks)
    if not against:
        return job, found
    engine = job.backend.describe().engine
    beside = f"What {job.model.name} gives depends on what is run beside it ({engine}): {against}."
    if single := job.alone(f"{beside} {ALONE}"):
        again = _again(work(single), against)
        if not apart(again.spot_checks):
            warn(f"{beside} {ALONE}", EngineNote)
            return single, again
    warn(f"{beside} No effect of this trace is known better than that.", EngineNote)
    return job, found


def _again(found: Numbers, against: str) -> Numbers:
    """The numbers of another run, with what spoke against those before."""
    return replace(found, spot_checks={**found.spot_checks, "rerun": against})
