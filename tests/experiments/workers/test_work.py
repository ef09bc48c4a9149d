"""What can be sent to workers."""

from typing import Any

import pytest

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.experiments.workers.work import require_sendable
from causal_tracing.patching.options.trace import RunOptions


def of_a_module(logits: Any, clean: Any, answers: Any, foils: Any) -> Any:
    return logits[:, 0]


def test_a_metric_that_workers_cannot_be_sent_is_said_before_the_work():
    within = ct.Metric("within", "logits", lambda logits, clean, answers, foils: logits[:, 0])
    with pytest.raises(InvalidOption, match=r"the function of metric 'within' cannot be sent .* Define it with def"):
        require_sendable(RunOptions(metric=["prob", within]))
    require_sendable(RunOptions(metric=["prob", ct.Metric("outside", "logits", of_a_module)]))
    require_sendable(RunOptions(metric="prob"))
