"""The one way to a backend: what is proved on the way, what is refused, and what the backends say of themselves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from causal_tracing.engine import choose, random_prompts
from causal_tracing.engine.backend import Backend
from causal_tracing.engine.checks import agreement
from causal_tracing.engine.checks import check as checks
from causal_tracing.engine.checks.check import check, prove
from causal_tracing.engine.choose import open_backend, plain_backend, within
from causal_tracing.engine.evaluate import evaluate
from causal_tracing.engine.hooks.gradients import linearised
from causal_tracing.errors import CannotPack, ComponentNotOffered, InvalidOption
from causal_tracing.interventions.edits import Edit, From, Run, World
from causal_tracing.interventions.known import Rules
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model
from causal_tracing.testing import FakeBackend, fake_model
from loaded import fresh, shared

CLEAN, CORRUPT = Run((5, 17, 42, 11)), Run((5, 23, 42, 11))
WORLDS = [World(CORRUPT, (Edit(Site("resid_post", layer, 2), From(CLEAN, 2)),), (3,)) for layer in range(4)]


def flat(logits: Tensor, _: Any) -> Tensor:
    return logits.flatten(1)


def first_logit(logits: Tensor) -> Tensor:
    return logits[:, -1, 0]


def test_both_engines_and_the_fake_are_backends():
    for backend in (open_backend(shared("llama"), []), plain_backend(shared("llama")), FakeBackend(lambda run: [0.0])):
        assert isinstance(backend, Backend)
    assert not isinstance(shared("llama"), Backend)


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_a_backend_gives_what_its_engine_gives(engine: str):
    backend = open_backend(shared("llama"), ["resid_post"], engine)
    assert backend.describe().engine == engine
    found, expected = backend.evaluate(WORLDS, flat), evaluate(shared("llama"), WORLDS, flat, engine=engine)
    assert np.array_equal(found.values, expected.values)
    assert found.worlds_run == expected.worlds_run == 4
    assert found.structural_zero.tolist() == [False, False, False, True]  # the last one is its base run


def test_what_is_described_is_what_the_model_has():
    described = open_backend(shared("llama"), ["resid_post", "z", "v"]).describe()
    assert described.engine == "packed"
    assert described.note is None
    assert (described.rules.num_layers, described.rules.cut) == (4, True)
    asked = {"resid_pre", "resid_post", "attn_out", "resid_mid", "mlp_out", "z", "v"}
    assert asked & {*described.rules.mixing} == {"resid_pre", "v"}
    assert {*described.rules.tokenwise} == {"resid_pre", "v"}
    assert (described.parts("z", 0), described.parts("v", 0), described.parts("resid_post", 0)) == (4, 2, 1)
    assert {"resid_mid", "z", "neurons"} <= {*described.components}
    assert (described.dtype, described.device, described.context, described.gradients) == ("float32", "cpu", 64, True)
    assert described.budget is not None
    assert described.budget > 0
    assert described.cost is None
    described.require("z")
    with pytest.raises(ComponentNotOffered, match=r"embedding is not offered by the backend 'packed'\. Offered: resid"):
        described.require("embedding")


def test_where_the_packed_engine_is_not_used_the_backend_says_why():
    described = open_backend(shared("bloom"), ["resid_post"]).describe()
    assert described.engine == "replay"
    assert "does not attend by transformers' replaceable attention function" in (described.note or "")
    with pytest.raises(CannotPack, match="does not run bloom"):
        open_backend(shared("bloom"), ["resid_post"], "packed")


def test_heads_are_proved_once_and_refused_where_the_proof_fails(monkeypatch: pytest.MonkeyPatch):
    asked: list[list[str]] = []
    proofs = checks.proofs  # pyright: ignore[reportPrivateImportUsage]

    def failing(model: Model, mediators: Any, *runs: Run) -> Any:
        asked.append(list(mediators))
        for finding in proofs(model, mediators, *runs):
            yield checks.bounded(finding.name, finding.components, 1.0, 0.0) if finding.component == "z" else finding

    open_backend(shared("llama"), ["resid_post"])
    monkeypatch.setattr(checks, "proofs", failing)
    open_backend(shared("llama"), ["resid_post", "v", "v"])
    with pytest.raises(ComponentNotOffered, match=r"z is not offered on this model \(llama\): its check failed"):
        open_backend(shared("llama"), ["v", "z"])
    assert asked == [["v"], ["v", "z"]]


def test_heads_of_a_network_are_proved_once(monkeypatch: pytest.MonkeyPatch):
    """However often it is traced; anew where something was hung on to it."""
    asked, proofs = [], checks.proofs  # pyright: ignore[reportPrivateImportUsage]

    def counted(model: Model, mediators: Any, *runs: Run) -> Any:
        asked.append(list(mediators))
        yield from proofs(model, mediators, *runs)

    monkeypatch.setattr(checks, "proofs", counted)
    model = fresh("llama")
    for _ in range(3):
        open_backend(model, ["resid_post", "z"])
    assert asked == [["z"]]
    model.layers[1].register_forward_hook(lambda *_: None)
    open_backend(model, ["z"])
    assert asked == [["z"], ["z"]]


def test_what_the_model_does_not_have_is_refused_before_anything_runs():
    with pytest.raises(ComponentNotOffered, match="neurons is not offered on this model"):
        open_backend(shared("mixtral"), ["neurons"])


def test_the_budget_belongs_to_the_backend():
    small = open_backend(shared("llama"), [], budget=1)
    assert small.describe().budget == 1
    sizes: list[int] = []

    def measure(logits: Tensor, worlds: Any) -> Tensor:
        sizes.append(len(worlds))
        return logits.flatten(1)

    small.evaluate(WORLDS, measure)
    assert sizes == [1, 1, 1, 1]
    sizes.clear()
    within(small, 2**28).evaluate(WORLDS, measure)
    assert sizes == [4]


def test_gradients_come_in_order_as_many_runs_at_a_time_as_fit():
    runs, places = [CLEAN, CORRUPT], [("resid_post", 1), ("mlp_out", 2)]
    whole = list(open_backend(shared("llama"), []).gradients(runs, places, first_logit))
    apart = list(open_backend(shared("llama"), [], budget=1).gradients(runs, places, first_logit))
    assert [len(part.values["mlp_out", 2]) for part in whole] == [2]
    assert [len(part.values["mlp_out", 2]) for part in apart] == [1, 1]
    expected = linearised(shared("llama"), runs, places, first_logit)
    for place in places:
        assert torch.equal(whole[0].values[place], expected.values[place])
        assert torch.equal(whole[0].gradients[place], expected.gradients[place])
        for row, part in enumerate(apart):
            torch.testing.assert_close(part.gradients[place][0], expected.gradients[place][row])


def test_what_worlds_would_take_is_counted():
    cost = open_backend(shared("llama"), ["resid_post"]).describe(WORLDS).cost
    assert cost is not None
    assert (cost.worlds_run, cost.naive_token_layers) == (4, 4 * 4 * 4)
    # The base run whole; then by layer the worlds that have joined, two tokens each, and what is read in the last.
    assert cost.token_layers == 4 * 4 + (0 + 2 + 4 + 3)
    replayed = plain_backend(shared("llama")).describe(WORLDS).cost
    assert replayed is not None
    assert replayed.token_layers == 4 * 4 * 4
    recorded = 2 * 4 * 4 * 9 * 32 * 4  # two runs, tokens, layers, nine vectors of the stream's width in float32
    assert open_backend(shared("llama"), [], budget=1000).describe(WORLDS).cost.memory == 1000 + recorded  # pyright: ignore[reportOptionalMemberAccess]
    assert cost.seconds > 0


def test_a_component_is_compared_once_for_a_length_and_shorter_ones(monkeypatch: pytest.MonkeyPatch):
    model, compared = fresh("llama"), []
    through = agreement.compare

    def counted(model: Model, components: Sequence[str], one: Run, *more: Any, **options: Any) -> Any:
        compared.extend((component, len(one.tokens)) for component in components)
        return through(model, components, one, *more, **options)

    monkeypatch.setattr(agreement, "compare", counted)
    for components, length in (
        (["resid_post"], 6),  # as long as when it was loaded
        (["resid_post"], 12),
        (["resid_post", "mlp_out"], 9),  # the first is known
        (["mlp_out", "resid_post"], 14),
        (["resid_post"], 13),
    ):
        assert open_backend(model, components, length=length).describe().engine == "packed"
    assert compared == [("resid_post", 12), ("mlp_out", 9), ("mlp_out", 14), ("resid_post", 14)]


def test_a_layer_that_does_other_things_with_a_long_prompt_is_noticed():
    model = fresh("llama")

    def far_token(_: Any, __: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[:, 8:] *= 1 + torch.arange(changed.shape[1])[8:, None] / 9
        return changed

    mlp: Any = model.layers[1].mlp
    handle = mlp.register_forward_hook(far_token)
    try:
        assert open_backend(model, ["resid_post"], length=6).describe().engine == "packed"
        assert "12 tokens" in (open_backend(model, ["mlp_out"], length=12).describe().note or "")
    finally:
        handle.remove()


# Backends that a model brings along.


def own(**offered: Any) -> Model:
    return fake_model(["the", "cat", "dog", "ran"], FakeBackend(lambda run: [0.0] * 4, name="mine", **offered))


def test_a_backend_of_the_models_own_is_the_only_one():
    model = own()
    assert open_backend(model, ["resid_post"]) is plain_backend(model) is within(model.backend, 7) is model.backend
    refused: list[dict[str, Any]] = [{"asked": "packed"}, {"asked": "replay"}, {"budget": 7}]
    for options in refused:
        with pytest.raises(InvalidOption, match=r"fake is run by a backend of its own, 'mine': leave engine= and"):
            open_backend(model, ["resid_post"], **options)


def test_what_an_own_backend_does_not_offer_is_refused_by_name():
    with pytest.raises(ComponentNotOffered, match=r"z is not offered by the backend 'mine'\. Offered: attn_out\."):
        open_backend(own(components=["attn_out"]), ["attn_out", "z"])


def test_a_model_without_a_network_says_what_its_backend_says():
    model = own(num_layers=3)
    assert (model.num_layers, model.dtype, str(model.device), model.attention) == (3, "float32", "cpu", "own")
    assert model.rules == Rules(num_layers=3)
    assert model.context is None
    with pytest.raises(InvalidOption, match="fake is run by a backend of its own: there is no network here"):
        check(model)


def test_heads_are_proved_once_and_again_where_the_model_has_changed(monkeypatch: pytest.MonkeyPatch):
    asked: list[Sequence[str]] = []
    monkeypatch.setattr(choose, "prove", lambda model, names: asked.append(names) or prove(model, names))
    model = fresh("qwen3")
    first, again = (open_backend(model, ["z", "resid_post"]).describe() for _ in range(2))
    assert asked == [["z"]]
    assert (first.components, first.counts, first.note) == (again.components, again.counts, again.note)
    open_backend(model, ["z", "q"])
    assert asked == [["z"], ["z", "q"]]
    handle = model.layers[0].register_forward_hook(lambda *_: None)
    open_backend(model, ["z"])
    handle.remove()
    open_backend(model, ["z"])
    assert asked == [["z"], ["z", "q"], ["z"]]


def test_components_are_compared_together_as_far_as_their_logits_fit(monkeypatch):
    model, groups = shared("gpt2"), []
    prompts, names = random_prompts.short_prompts(model.network, model.tokenizer), model.anatomy.components
    logits = agreement._logits  # pyright: ignore[reportPrivateUsage]

    def counted(model: Model, worlds: Any, engine: str) -> Any:
        groups.append(len(worlds))
        return logits(model, worlds, engine)

    monkeypatch.setattr(agreement, "_logits", counted)
    together = agreement.compare(model, names, *prompts)
    monkeypatch.setattr(agreement, "default_budget", lambda _: 1)
    alone = agreement.compare(model, names, *prompts)
    assert groups == [len(names)] * 2 + [1] * 2 * len(names)
    for found in (together, alone):
        assert found.differences.keys() == {*names}
        assert all(0 < difference < 1e-6 for difference in found.differences.values())
