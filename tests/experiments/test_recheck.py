"""Spot checks act: where they are apart by more than rounding, nothing of the packed engine is handed on."""

from dataclasses import replace

import numpy as np
import pytest

import causal_tracing as ct
from causal_tracing.errors import EngineNote
from causal_tracing.patching.spot_checks import SpotChecks
from causal_tracing.results.spot_checks import apart
from causal_tracing.testing import FakeBackend, LinearToy, fake_model
from loaded import fresh

PAIR = ct.Pair(clean="w5 w17 w42 w11 w60 w33 w8", corrupt="w5 w23 w42 w11 w71 w33 w8", answer=" w9", foil=" w12")
FAR = 60  # tokens: further than the engines' comparison goes in one call, and nearer than a trace does


def late_hook(model):
    """A hook of the user's that acts on whatever is far back in one call of a layer."""

    def hook(_, __, output):
        output = output.clone()
        output[:, FAR:] += 1.0
        return output

    return model.part(1, "mlp").register_forward_hook(hook)


def test_what_the_spot_checks_speak_against_is_run_again_on_replay():
    model = fresh("llama")
    late_hook(model)
    with pytest.warns(EngineNote, match=r"The packed engine is wrong here: of \d+ cells .* one differs by"):
        found = ct.trace(model, PAIR, progress=False)
    assert found.provenance["engine"] == "replay"
    assert "All was run again on replay" in found.provenance["engine_note"]
    assert "one differs by" in found.provenance["spot_checks"]["rerun"]
    expected = ct.trace(model, PAIR, engine="replay", progress=False)
    np.testing.assert_array_equal(found.effects.restoration, expected.effects.restoration)


def test_the_hook_does_nothing_on_replay():
    model = fresh("llama")
    plain = ct.trace(model, PAIR, engine="replay", progress=False)
    late_hook(model)
    np.testing.assert_array_equal(
        plain.effects.restoration, ct.trace(model, PAIR, engine="replay", progress=False).effects.restoration
    )


@pytest.mark.filterwarnings("error::causal_tracing.errors.EngineNote")
def test_rounding_is_no_reason_to_run_again():
    found = ct.trace(fresh("llama"), PAIR, progress=False)
    assert found.provenance["engine"] == "packed"
    assert 0 < found.provenance["spot_checks"]["bound"] < 0.01
    assert "rerun" not in found.provenance["spot_checks"]


@pytest.mark.filterwarnings("ignore::causal_tracing.errors.EngineNote")
def test_estimates_are_verified_again_too():
    model = fresh("llama")
    late_hook(model)
    found = ct.attribute(model, PAIR, components=["resid_post", "attn_out", "mlp_out", "z"], verify=200, progress=False)
    assert found.provenance["engine"] == "replay"


@pytest.mark.parametrize(
    ("record", "speaks"),
    [
        ({"cells": 8, "largest_difference": 1e-3, "bound": 1e-4}, True),
        ({"cells": 8, "largest_difference": 1e-5, "bound": 1e-4}, False),
        ({"cells": 8, "largest_difference": 1e-3, "bound": None}, False),
        ({"cells": 8, "largest_difference": None, "bound": 1e-4}, False),
        ({"cells": 8, "largest_difference": 1e-3}, False),
    ],
)
def test_what_speaks_against_numbers(record, speaks):
    assert bool(apart(record)) == speaks


def test_what_is_wrong_at_the_end_of_the_longest_call_alone_is_seen():
    """No random cell need lie there: the one that does is run again."""
    model, longest = fresh("llama"), []
    handle = model.part(2, "mlp").register_forward_hook(lambda _, __, out: longest.append(out.shape[1]))
    ct.trace(model, PAIR, components=["mlp_out"], layers=[1], progress=False)
    handle.remove()

    def hook(_, __, output):
        output = output.clone()
        output[:, max(longest) - 1 :] += 1.0  # on the last token of that call; the check's are shorter
        return output

    model.part(2, "mlp").register_forward_hook(hook)
    with pytest.warns(EngineNote, match="The packed engine is wrong here: of 2 cells"):
        found = ct.trace(model, PAIR, components=["mlp_out"], layers=[1], spot_checks=1, progress=False)
    assert found.provenance["engine"] == "replay"


def test_of_many_pairs_what_is_kept_for_the_checks_is_of_few(monkeypatch):
    """A number for every word of the vocabulary, of the pairs that are checked alone, and not of one a chunk."""
    held, real = [], SpotChecks.run

    def run(self, sums, unedited, clean, furthest=None):
        held.append((len(clean), len(self.pairs), furthest))
        return real(self, sums, unedited, clean, furthest)

    monkeypatch.setattr(SpotChecks, "run", run)
    rest, other = "w17 w42 w11 w60 w33 w8", "w23 w42 w11 w71 w33 w8"
    pairs = [replace(PAIR, clean=f"w{20 + n} {rest}", corrupt=f"w{20 + n} {other}") for n in range(40)]
    ct.trace(fresh("llama"), pairs, components=["resid_post"], layers=[1, 2], spot_checks=1, progress=False)
    ((kept, checked, furthest),) = held
    assert checked == 1
    assert furthest is not None
    assert kept <= 2


class Beside(FakeBackend):
    """A backend whose answers depend on how many worlds are asked for at once."""

    def evaluate(self, worlds, measure, **options):
        found = super().evaluate(worlds, measure, **options)
        return replace(found, values=found.values + 0.01 * len(worlds))

    def describe(self, worlds=()):
        return replace(super().describe(worlds), rounding=1e-4)


def test_where_nothing_is_plainer_it_is_said_that_the_numbers_are_apart():
    toy = LinearToy(4)
    backend = Beside(toy, activations=toy.activations, num_layers=toy.num_layers)
    model = fake_model(["the", "cat", "dog", "ran"], backend)
    pair = ct.Pair(clean="the cat ran", corrupt="the dog ran", answer=" cat", foil=" dog")
    with pytest.warns(EngineNote, match=r"What fake gives depends on what is run beside it \(fake\): of . cells"):
        found = ct.trace(model, pair, progress=False)
    assert found.provenance["engine"] == "fake"
    assert found.provenance["spot_checks"]["largest_difference"] > 0.01
