"""How cells that were run again agree with what a trace says of them, as its record holds it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def apart(record: Mapping[str, Any]) -> str:
    """What speaks against the numbers that were checked: they differ by more than rounding. Empty if nothing does."""
    largest, bound = record["largest_difference"], record.get("bound")
    # Without a bound nothing can be said against the numbers: they stand beside the largest difference.
    if bound is None or largest is None or largest <= bound:
        return ""
    return (
        f"of {record['cells']} cells that were run again on whole forwards, one differs by {largest:.1e} "
        f"(rounding explains {bound:.1e})"
    )


def record_of(differences: Sequence[float]) -> dict[str, Any]:
    """How many cells were run again, and by how much they differ at most; None, with a reason, if no number says it."""
    undefined = sum(not math.isfinite(each) for each in differences)
    if undefined:
        reason = f"{undefined} of {len(differences)} cells run again gave numbers that are not finite"
        return {"cells": len(differences), "largest_difference": None, "reason": reason}
    return {"cells": len(differences), "largest_difference": max(differences, default=None)}


def together(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The records of several parts as one."""
    worst = [record["largest_difference"] for record in records]
    reasons = list(dict.fromkeys(record["reason"] for record in records if "reason" in record))
    largest = None if reasons else max((each for each in worst if each is not None), default=None)
    found = {"cells": sum(record["cells"] for record in records), "largest_difference": largest}
    for name, shown in (("reason", reasons), ("rerun", [record["rerun"] for record in records if "rerun" in record])):
        if shown:
            found[name] = "; ".join(dict.fromkeys(shown))
    return found
