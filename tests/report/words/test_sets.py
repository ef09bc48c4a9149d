"""What sites do together, in words: a backup, a chain and an erasure are kept apart as far as numbers allow."""

from typing import Any

import pytest
import torch

import causal_tracing as ct
from causal_tracing.report.words.sets import NOT_SHOWN_PAIRS, READ_PAIRS, READ_SETS, joint_not_shown, joint_read
from causal_tracing.testing import Copy, Neuron, Neurons, ToyLayer, ToyNetwork, circuit, toy_model
from joint import PAIR, others, tiny

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")  # toys attend by themselves
A, B = "mlp_out 0 @ last", "mlp_out 1 @ last"


def said(name: str, **options: Any) -> str:
    model, pair = circuit(name)
    asked: dict[str, Any] = {"interactions": [A, B]} | options
    return ct.trace(model, pair, components=[], progress=False, **asked).summary()


def test_gates_are_told_with_their_numbers() -> None:
    gate = said("or")
    assert (
        f"{A} with {B}, disruption: together 1.00, alone 0.00 and 0.00, so 1.00 logits more than the sum: one does "
        "what the other would have done (backup, OR-like)."
    ) in gate
    assert (
        f"{A} with {B}, restoration: together 1.00, alone 1.00 and 1.00, so 1.00 logits less than the sum: each adds "
        "less to the other (OR-like), or the first acts through the second (a chain)."
    ) in gate
    gate = said("and")
    assert "so 1.00 logits less than the sum: each needs the other (AND-like), or the first acts through" in gate
    assert "so 1.00 logits more than the sum: each does more with the other (AND-like)." in gate
    gate = said("sum")
    assert gate.count("no pair of sites interacts by more than 2% of the total effect") == 2


def test_the_earlier_site_comes_first_however_they_are_listed() -> None:
    assert f"{A} with {B}, disruption" in said("or", interactions=[[B], [A]])
    assert f"{A} with {B}, disruption" in said("or", interactions=[B, A])


def test_an_erasure_is_told_from_a_backup() -> None:
    """B takes away what A wrote: alone it opposes; without A it has less to take away."""
    words, of_a, value = ["the", "on", "off", "true", "false"], 5, 6
    parts = [
        [Neuron(reads={1: 1}, writes={of_a: 1, value: 2})],
        [Neuron(reads={of_a: 1, 1: 1}, bias=-1, writes={value: -1})],
        [],
    ]
    head = [[0.0] * 5 for _ in range(7)]
    head[value][3] = 1.0
    network = ToyNetwork(
        embedding=torch.eye(5, 7),
        layers=[ToyLayer(Copy(7), Neurons(7, neurons)) for neurons in parts],
        head=torch.tensor(head),
        bias=torch.tensor([-1.0, -1, -1, 0, 0]),
    )
    pair = ct.Pair(clean="the on", corrupt="the off", answer=" true", foil=" false")
    trace = ct.trace(toy_model(network, words, "eraser"), pair, components=[], interactions=[A, B], progress=False)
    found = trace.of("interactions").disruption.sel(metric="logit_diff").squeeze(["pair", "component"])
    assert [found.sel(site=site, partner="alone").item() for site in (A, B)] == [1, -1]
    assert found.sel(site=A, partner=B).item() == 1  # e(AB) − e(A) − e(B) = 1
    assert "the second alone opposes: without the first it has less to take away (erasure, not backup)" in (
        trace.summary()
    )


def test_heads_of_one_layer_are_in_no_chain() -> None:
    trace = ct.trace(tiny(), PAIR, components=[], interactions=["each z 3 @ last"], progress=False)
    told = [line for line in trace.summary().splitlines() if " with z 3." in line and "together" in line]
    assert told
    assert not any("chain" in line for line in told)


def test_sets_stand_beside_the_sum_of_their_members() -> None:
    text = said("or", sets={"both": [A, B], "one": [A]}, growing=True)
    assert (
        "Set both: restoring all of it brings back 1.00 logits, its members alone add up to 2.00; disrupting all of it "
        "takes away 1.00 logits, its members alone add up to 0.00."
    ) in text
    assert "Growing set both, restoration site by site: 1.00, 0.00 logits." in text
    assert "Growing set both, disruption site by site: 0.00, 1.00 logits." in text
    assert "Growing set one" not in text


def test_how_to_read_and_what_is_not_shown_follow_what_was_measured() -> None:
    asked: dict[str, Any] = {"components": [], "progress": False}
    sets = ct.trace(tiny(), PAIR, sets={"a": ["z 1.2 @ last"]}, **asked).measurements
    pairs = ct.trace(tiny(), PAIR, interactions=["each z 3 @ last"], **asked).measurements
    blocks = ct.trace(tiny(), PAIR, components=["mlp_out"], layers=[1], progress=False).measurements
    assert (joint_read(sets), joint_not_shown(sets)) == ((READ_SETS,), ())
    assert (joint_read(pairs), joint_not_shown(pairs)) == ((READ_PAIRS,), (NOT_SHOWN_PAIRS,))
    assert (joint_read(blocks), joint_not_shown(blocks)) == ((), ())


def test_many_pairs_tell_the_strongest_of_each_kind() -> None:
    sets = {"both": ["mlp_out 1 @ last", "z 2.1 @ last"]}
    trace = ct.trace(
        tiny(), others(9), components=[], sets=sets, growing=True, interactions=["each z 3 @ last"], progress=False
    )
    text = trace.summary()
    assert "Strongest set: both; restoring it brings back" in text
    assert "Strongest growing set: the first" in text
    assert "restoring both brings back" in text
    assert "beyond the sum of what each does alone" in text
