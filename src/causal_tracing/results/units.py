"""The built-in metrics, in the order of every array, with their units; and how a record names others."""

from collections.abc import Mapping
from typing import Any

UNITS = {
    "logit_diff": "logits",
    "log_prob": "nats",
    "logit": "logits",
    "prob": "probability",
    "prob_diff": "probability",
    "neg_kl": "nats",
    "neg_rank": "ranks",
    "entropy": "nats",
}
METRICS = tuple(UNITS)
NEED_FOIL = ("logit_diff", "prob_diff")


def is_function(record: Any) -> bool:
    """Whether what a record has of `metric=` names a function, which no command line can."""
    return any(isinstance(each, Mapping) for each in (record if isinstance(record, list) else [record]))
