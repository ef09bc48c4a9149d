"""Answers of several tokens, teacher-forced, against bare hooks; the spread of repeats."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.engine.choose import open_backend, plain_backend
from causal_tracing.engine.hooks import replay as replay_module
from causal_tracing.engine.packed.layer_loop import Wave
from causal_tracing.interventions.edits import Run, World
from causal_tracing.models.model import Model
from causal_tracing.patching.contrast import of_clean
from causal_tracing.patching.metrics.scoring import Scoring, preferences, spread
from causal_tracing.patching.preview import log_probs
from causal_tracing.prompts.pairs import tokenize
from causal_tracing.results.units import METRICS
from joint import WORDS, tiny
from loaded import shared

CLEAN, CORRUPT = " w11 w12 w13 w14 w15 w16", " w11 w12 w43 w14 w15 w16"
SEVERAL = {"answer": " w7 w9 w3", "foil": " w8 w2"}
LAST = 5


def pair(**fields: Any) -> ct.Pair:
    common: dict[str, Any] = {"clean": CLEAN, "corrupt": CORRUPT, "answer": " w7", "foil": " w8"}
    return ct.Pair(**(common | fields))


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def ids(text: str) -> list[int]:
    return WORDS(text)["input_ids"]


def summed(network: Any, prompt: str, text: str, layer: int | None = None, position: int = 0) -> float:
    """Σ log p of the text's tokens after the prompt, one forward for each; the clean state at one place, if any."""
    seen: list[torch.Tensor] = []

    def note(_: Any, __: Any, output: torch.Tensor) -> None:
        seen.append(output[0, position].clone())

    def write(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[0, position] = seen[0]
        return changed

    handles = []
    with torch.no_grad():
        if layer is not None:
            handle = network.model.layers[layer].register_forward_hook(note)
            network(torch.tensor([ids(CLEAN)]))
            handle.remove()
            handles.append(network.model.layers[layer].register_forward_hook(write))
        total, tokens = 0.0, ids(prompt)
        for token in ids(text):
            total += network(torch.tensor([tokens])).logits[0, -1].double().log_softmax(-1)[token].item()
            tokens = [*tokens, token]
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_several_tokens_are_scored_teacher_forced(model, engine):
    found = ct.trace(model, pair(**SEVERAL), components=["resid_post"], engine=engine)
    at = {"pair": "pair-0"}
    for name, run in (("clean", CLEAN), ("corrupt", CORRUPT)):
        answer, foil = (summed(model.network, run, SEVERAL[which]) for which in ("answer", "foil"))
        assert found.effects[name].sel({"metric": "log_prob"} | at).item() == pytest.approx(answer, abs=1e-5)
        assert found.effects[name].sel({"metric": "prob"} | at).item() == pytest.approx(np.exp(answer), rel=1e-4)
        assert found.effects[name].sel({"metric": "logit_diff"} | at).item() == pytest.approx(answer - foil, abs=1e-5)
    base = [summed(model.network, CORRUPT, SEVERAL[which]) for which in ("answer", "foil")]
    sizes = []
    for layer in range(4):
        for position in (2, 4, 5):
            patched = [summed(model.network, CORRUPT, SEVERAL[which], layer, position) for which in ("answer", "foil")]
            by_hand = (patched[0] - patched[1]) - (base[0] - base[1])
            cell = found.effects.restoration.sel(
                {"metric": "logit_diff", "component": "resid_post", "layer": layer, "position": position} | at
            )
            assert cell.item() == pytest.approx(by_hand, abs=1e-5)
            sizes.append(abs(by_hand))
    assert max(sizes) > 0.1


def test_one_token_behind_another_path_gives_the_same(model):
    """The difference of two single tokens' log-probabilities is the difference of their logits."""
    one = tokenize(pair(), WORDS)
    world = World(Run(one.clean.tokens), (), (LAST,))
    plain = Scoring(plain_backend(model), {0: one}).evaluate([world]).values[0]
    assert plain[METRICS.index("logit_diff")] == pytest.approx(
        summed(model.network, CLEAN, " w7") - summed(model.network, CLEAN, " w8"), abs=1e-5
    )


def test_pairs_of_both_kinds_and_heads_go_together(model):
    kinds = [pair(id="one"), pair(**SEVERAL, id="several"), pair(answer=" w7 w9", foil=None, id="no foil")]
    together = ct.trace(model, kinds, heads=["z", "pattern"], metric="log_prob")
    for one in kinds:
        alone = ct.trace(model, one, heads=["z", "pattern"], metric="log_prob")
        for table in ("effects", "heads"):
            both = (getattr(found, table).sel(pair=one.id) for found in (together, alone))
            ours, theirs = (found.restoration.where(found.metric != "neg_rank", drop=True) for found in both)
            assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.isnan(together.effects.clean.sel(metric="logit_diff", pair="no foil"))


def test_what_several_tokens_do_not_have_is_undefined_with_a_reason(model):
    found = ct.trace(model, pair(**SEVERAL)).effects.sel(pair="pair-0")
    for metric, what in (("logit", "logit"), ("neg_rank", "rank")):
        assert np.isnan(found.total_effect.sel(metric=metric))
        assert found.reason.sel(metric=metric).item() == f"an answer of several tokens has no single {what}"
    assert found.total_effect.sel(metric=["neg_kl", "log_prob", "prob", "logit_diff"]).notnull().all()


def test_what_is_read_behind_the_prompt_is_no_cut(model):
    single = ct.trace(model, pair(), components=["resid_post"], positions="together").effects
    several = ct.trace(model, pair(**SEVERAL), components=["resid_post"], positions="together").effects
    assert (single.status.sel(metric="logit_diff") == "cut").all()
    # The answer's own tokens read the prompt at every layer, so a layer of the prompt is not all that they read.
    assert (several.status.sel(metric="logit_diff") == "ok").all()
    last = ct.trace(model, pair(**SEVERAL), components=["resid_post"], layers=[3], positions=[4, 5]).effects
    status = last.status.sel(metric="logit_diff").squeeze().values.tolist()
    assert status == ["structural_zero", "ok"]


def test_several_tokens_are_said(model):
    (shown,) = ct.preview(model, pair(**SEVERAL))
    assert "the answer is 3 tokens ( w7| w9| w3): scored by the sum of their log-probabilities" in str(shown)
    long = pair(clean=" w1" * 63, corrupt=" w2" * 63, answer=" w7 w8 w9", foil=" w8")
    assert "the pair has 65 tokens, and " in str(ct.preview(model, long)[0])
    with pytest.raises(ct.CausalTracingError, match="has 65 tokens; gpt2 takes 64 at most"):
        ct.preview(shared("gpt2"), long)


def test_the_spread_of_repeats_is_of_the_size_of_rounding(model):
    tokens = [tokenize(pair(), WORDS), tokenize(pair(**SEVERAL), WORDS)]
    worlds = [World(Run(one.clean.tokens), (), (LAST,), number) for number, one in enumerate(tokens)]
    for backend in (plain_backend(model), open_backend(model, ["resid_post"])):
        scoring = Scoring(backend, dict(enumerate(tokens)))
        repeats = [again for world in worlds for again in scoring.repeats([world])]
        assert len(repeats) == 2 * 3
        values = scoring.evaluate([*worlds, *repeats]).values
        found = spread(values[:2], values[2:])
        assert found.shape == (len(METRICS),)
        assert found[METRICS.index("log_prob")] < 1e-5


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_repeats_are_run_on_the_engine_that_runs_the_cells(model, engine: str, monkeypatch: pytest.MonkeyPatch):
    before = ct.trace(model, pair(), engine=engine, spot_checks=0).measurements.pairs
    owner, name = (Wave, "_send") if engine == "packed" else (replay_module, "forward")
    right = getattr(owner, name)

    def noisy(*args: Any, **options: Any) -> Any:
        found = right(*args, **options)
        drawn = torch.randn(found[0].shape, generator=generator) * 1e-3
        return (found[0] + drawn, *found[1:])

    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(owner, name, noisy)
    after = ct.trace(model, pair(), engine=engine, spot_checks=0).measurements.pairs
    assert (before.spread.sel(metric="logit_diff") < 1e-5).all()
    assert (after.spread.sel(metric="logit_diff") > 1e-4).all()


@pytest.mark.parametrize("answers", [{"answer": " w7"}, SEVERAL])
def test_worlds_are_counted_as_they_are_run_and_as_they_were_estimated(model, answers: dict[str, str]):
    asked = pair(**answers)
    record = ct.trace(model, asked, spot_checks=0).provenance
    assert 0 < record["worlds_skipped"] < record["worlds"]
    found = ct.estimate(model, asked)
    assert (found.worlds, found.worlds_skipped) == (record["worlds"], record["worlds_skipped"])


def test_a_preference_is_that_of_whole_texts(model):
    """Of several tokens the first ones may say the opposite."""
    backend = plain_backend(model)
    pairs = [tokenize(pair(answer=f" w{n} w{n + 1}", foil=f" w{n + 2} w{n + 5}"), WORDS) for n in range(4, 60, 4)]
    single = [tokenize(pair(foil=foil), WORDS) for foil in (" w6", None)]
    expected = log_probs(backend, [of_clean(one) for one in [*pairs, *single]])
    found = preferences(backend, [*pairs, *single], expected)

    def log_prob(one, text: tuple[int, ...]) -> float:
        tokens = [*one.clean.tokens, *text]
        with torch.no_grad():
            said = model.network(torch.tensor([tokens])).logits[0].log_softmax(-1)
        start = len(one.clean.tokens)
        return sum(float(said[start + n - 1, token]) for n, token in enumerate(text))

    by_hand = [log_prob(one, *one.answers) - log_prob(one, *one.foils) for one in [*pairs, single[0]]]
    assert found[:-1] == pytest.approx(by_hand, abs=1e-4)
    assert math.isnan(found[-1])
    firsts = [float(each[one.answer] - each[one.foil]) for one, each in zip(pairs, expected, strict=False)]
    assert any((first > 0) != (whole > 0) for first, whole in zip(firsts, by_hand, strict=False))
