"""Which runs must be known before others: what edits read of donors, of what these read, and so on."""

from collections.abc import Iterable, Mapping

from causal_tracing.interventions.edits import Run

Kept = tuple[str, int, int]  # an activation of one token: its component, layer and position


def read_by(runs: Iterable[Run]) -> dict[Run, dict[Kept, None]]:
    """Every donor of these runs and of their donors, with what is read of it; each behind those that it reads itself.

    What is read keeps its order, so that the same runs are recorded in the same way.
    """
    found: dict[Run, dict[Kept, None]] = {}
    order: dict[Run, None] = {}
    waiting = [(run, False) for run in dict.fromkeys(runs)]
    seen: set[Run] = set()
    # True behind a run says that all it reads of has been walked: so it is put in order behind its own donors.
    while waiting:
        run, known = waiting.pop()
        if known:
            order[run] = None
            continue
        if run in seen:
            continue
        seen.add(run)
        waiting.append((run, True))
        for edit in run.edits:
            for place, donor in edit.reads:
                found.setdefault(donor.run, {})[*place, donor.position] = None
                if donor.run not in seen:
                    waiting.append((donor.run, False))
    return {run: found[run] for run in order if run in found}


def in_levels(donors: Mapping[Run, object]) -> list[list[Run]]:
    """Donors in groups of which each reads of the groups before it alone; they come as `read_by` orders them."""
    depth: dict[Run, int] = {}
    for run in donors:
        # Its donors come before it here, so that how deep they lie is known.
        depth[run] = max((1 + depth[one.run] for edit in run.edits for _, one in edit.reads), default=0)
    levels: list[list[Run]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for run, level in depth.items():
        levels[level].append(run)
    return levels
