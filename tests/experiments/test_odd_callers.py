"""Callers as there are: options as arrays, programs without a console, streams that are no terminals of their own."""

import io
import sys
from typing import Any

import numpy as np
import pytest
import torch

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from joint import PAIR, tiny


@pytest.mark.parametrize(
    "options",
    [
        {"components": ["mlp_out"]},
        {"components": ["mlp_out"], "layers": [0, 2], "seed": 3, "window": 2},
        {"components": [], "heads": ["z"], "head_positions": [1]},
        {"components": ["resid_post"], "sever": ["mlp_out"], "metrics": ["prob"], "metric": ["logit_diff"]},
        {"components": ["attn_out"], "given": ["resid_post 0 @ last"], "direct": ["mlps_frozen"]},
    ],
)
@pytest.mark.parametrize("made", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_arrays_mean_what_lists_mean(options: dict[str, Any], made: Any) -> None:
    given = {}
    for name, value in options.items():
        of_texts = isinstance(value, list) and any(isinstance(each, str) for each in value)
        given[name] = value if made is torch.tensor and (of_texts or value == []) else made(value)
    if options["components"] == []:
        given["components"] = []  # of no type
    there, expected = (ct.trace(tiny(), PAIR, progress=False, **each) for each in (given, options))
    assert there.effects.identical(expected.effects)
    assert there.provenance["options"] == expected.provenance["options"]


@pytest.mark.parametrize("closed", [True, False])
def test_a_program_without_a_console_traces(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO() if closed else None
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert ct.trace(tiny(), PAIR, components=["mlp_out"], layers=[0]).effects.sizes["layer"] == 1


def test_the_strongest_sites_are_a_whole_number_of_sites() -> None:
    trace = ct.trace(tiny(), PAIR, components=["mlp_out"], progress=False)
    assert len(trace.top(0)) == 0
    for count in (-1, True):
        with pytest.raises(InvalidOption, match="count must be a whole number of at least 0"):
            trace.top(count)  # pyright: ignore[reportArgumentType]
