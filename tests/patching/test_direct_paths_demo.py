"""Direct paths of heads of the demo model: the numbers that bare hooks gave elsewhere, and what is said of them."""

from typing import Any

import numpy as np
import pytest

import causal_tracing as ct
from causal_tracing.models.model import Model

PAIR = ct.Pair(
    clean="The Colosseum is located in the city of",
    corrupt="The Eiffel Tower is located in the city of",
    answer=" Rome",
    foil=" Paris",
)
# Head of layer 23: whole effect (all tokens patched), direct path, the same with the norm frozen, with MLPs live.
TABLE = {
    4: (7.541, 3.472, 3.485, 5.846),
    5: (4.636, 2.420, 2.450, 4.010),
    1: (0.370, 1.187, 1.224, 1.157),
    0: (0.235, 0.243, None, 0.644),
    3: (-0.235, -0.151, None, -0.275),
}


def traced(demo: Model, **options: Any) -> ct.Trace:
    asked = {"components": [], "heads": True, "layers": [23], "directions": ["restoration"], "direct": True}
    return ct.trace(demo, PAIR, progress=False, **(asked | options))


@pytest.fixture(scope="module")
def live(demo: Model) -> ct.Trace:
    return traced(demo, head_positions=["together", "last"])


def test_paths_of_heads_are_those_that_bare_hooks_gave(demo: Model, live: ct.Trace):
    at: dict[str, Any] = {"metric": "logit_diff", "pair": "pair-0", "component": "z", "layer": 23}
    found = live.of("heads").sel(at)
    frozen = traced(demo, head_positions=["last"], direct=["mlps_frozen"], direct_norm="frozen").of("heads").sel(at)
    assert found.total_effect.item() == pytest.approx(13.8711, abs=1e-3)
    for head, (whole, direct, with_frozen_norm, mlps_live) in TABLE.items():
        together, last = (found.sel(head=head, position=name) for name in ("together", "last"))
        assert together.restoration.item() == pytest.approx(whole, abs=1e-3)
        assert last.direct_path_restoration.item() == pytest.approx(direct, abs=1e-3)
        assert last.direct_path_mlps_live_restoration.item() == pytest.approx(mlps_live, abs=1e-3)
        if with_frozen_norm is not None:
            measured = frozen.direct_path_restoration.sel(head=head, position="last").item()
            assert measured == pytest.approx(with_frozen_norm, abs=1e-3)
    assert found.attrs["direct_norm"] == "live"
    assert frozen.attrs["direct_norm"] == "frozen"
    # At the token that is read alone something can go the direct way: all tokens together are that one.
    np.testing.assert_allclose(
        found.direct_path_restoration.sel(position="together"),
        found.direct_path_restoration.sel(position="last"),
        atol=1e-4,
    )


def test_a_path_that_the_map_hides_is_said(live: ct.Trace):
    said = live.summary()
    assert "Hidden in the map of head by its z: head 1 of layer 23 at" in said
    assert "through the residual stream alone it brings back 1.19 logits, in all 0." in said
    assert "with later attention and later MLPs live, 0." in said


# Of a head at all tokens: what goes to later queries, keys, values, MLPs and logits, each class jointly; and in all.
CLASSES = ("q", "k", "v", "mlp_out", "logits")
BY_CLASS = {4: (-0.063, 0.131, 0.353, 2.737, 3.472, 7.541), 1: (-0.642, 0.025, -0.058, 0.105, 1.187, 0.370)}


def test_paths_to_classes_of_readers_are_those_that_bare_hooks_gave(demo: Model):
    receivers = {name: [name] for name in CLASSES}
    found = ct.paths(
        demo, PAIR, senders=[f"z 23.{head} @ all" for head in BY_CLASS], receivers=receivers,
        directions=["restoration"], spot_checks=0, progress=False,
    ).of("paths").sel(metric="logit_diff", pair="pair-0", component="path")  # fmt: skip
    for head, expected in BY_CLASS.items():
        measured = found.restoration.sel(sender=f"z 23.{head} @ all")
        np.testing.assert_allclose(measured.sel(receiver=[*CLASSES, "every path"]), expected, atol=1e-3)


# Of three paths (into the MLPs of layers 25 and 24 from head 23.4, into the query of 24.4 from 23.1), by bare hooks.
ESTIMATED = {
    ("restoration", "eap"): (0.620, None, -0.402),
    ("restoration", "reception"): (1.538, None, -0.539),
    ("disruption", "eap"): (0.237, -0.095, None),
    ("disruption", "reception"): (1.194, 0.384, None),
}


@pytest.mark.parametrize(("direction", "method"), ESTIMATED)
def test_estimates_of_paths_are_those_that_bare_hooks_gave(demo: Model, direction: str, method: str):
    senders, receivers = ["z 23.4 @ last", "z 23.1 @ last"], ["mlp_out 25", "mlp_out 24", "q 24.4"]
    few: dict[str, Any] = {"verify": 1, "sample": 1, "spot_checks": 0, "progress": False}
    found = ct.attribute(
        demo, PAIR, method=method, direction=direction, senders=senders, receivers=receivers, **few
    ).estimates["path"].isel(pair=0)  # fmt: skip
    for receiver, expected in zip(receivers, ESTIMATED[direction, method], strict=True):
        if expected is not None:
            sender = senders[receiver == "q 24.4"]
            assert float(found.sel(sender=sender, receiver=receiver)) == pytest.approx(expected, abs=1e-3)
