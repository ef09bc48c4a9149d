"""Sets of answers and foils: by bare logits, by hand over several tokens, and in all that a trace is written to."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

import causal_tracing as ct
from causal_tracing.engine.choose import plain_backend
from causal_tracing.errors import InvalidOption, InvalidPair
from causal_tracing.models.model import Model
from causal_tracing.patching.metrics.built_in import BUILT_IN, NO_TOKEN, measure_logits, measures_of
from causal_tracing.patching.metrics.scoring import preferences
from causal_tracing.patching.metrics.terms import terms_of
from causal_tracing.prompts.answers import checked_texts
from causal_tracing.prompts.pairs import tokenize
from causal_tracing.report.document import document
from causal_tracing.results.units import METRICS
from joint import WORDS, tiny

CLEAN, CORRUPT = " w11 w12 w13 w14 w15 w16", " w11 w12 w43 w14 w15 w16"
ONE = {"answer": [" w7", " w21", " w3"], "foil": [" w8", " w2"]}
MIXED = {"answer": [" w7 w9", " w7 w4", " w21", " w5 w6 w1"], "foil": [" w8", " w2 w3"]}
SUMMED = ("logit_diff", "log_prob", "prob", "prob_diff")


def pair(**fields: Any) -> ct.Pair:
    common: dict[str, Any] = {"clean": CLEAN, "corrupt": CORRUPT, "answer": " w7", "foil": " w8", "id": "p"}
    return ct.Pair(**(common | fields))


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny()


def ids(text: str) -> list[int]:
    return WORDS(text)["input_ids"]


def told(trace: ct.Trace, run: str, *metrics: str) -> list[float]:
    return trace.effects[run].sel(pair="p", metric=list(metrics)).values.tolist()


def bare(model: Model, prompt: str, behind: str = "", patch: tuple[int, int] | None = None) -> torch.Tensor:
    """The logits [token, vocab] of a forward; with the clean run's stream after a layer at a position, if any."""
    tokens, seen = ids(prompt + behind), list[torch.Tensor]()
    layers: Any = model.network.model.layers

    def write(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[0, patch[1]] = seen[0]  # pyright: ignore[reportOptionalSubscript]
        return changed

    with torch.no_grad():
        if patch is None:
            return model.network(torch.tensor([tokens])).logits[0].double()
        handle = layers[patch[0]].register_forward_hook(lambda _, __, output: seen.append(output[0, patch[1]].clone()))
        model.network(torch.tensor([ids(CLEAN + behind)]))
        handle.remove()
        handle = layers[patch[0]].register_forward_hook(write)
        found = model.network(torch.tensor([tokens])).logits[0].double()
        handle.remove()
    return found


def by_hand(logits: torch.Tensor) -> list[float]:
    """SUMMED of the sets of ONE, of the logits after the prompt, by plain sums of exponentials."""
    answers, foils = ([ids(text)[0] for text in ONE[name]] for name in ("answer", "foil"))
    whole = logits.exp().sum().item()
    up, down = (sum(math.exp(logits[token].item()) for token in tokens) for tokens in (answers, foils))
    return [math.log(up) - math.log(down), math.log(up / whole), up / whole, up / whole - down / whole]


def sequence(model: Model, prompt: str, text: str, patch: tuple[int, int] | None = None) -> float:
    """The probability of a text behind a prompt, a forward for each of its tokens."""
    total, behind = 1.0, ""
    for word in text.split():
        total *= bare(model, prompt, behind, patch)[-1].softmax(-1)[ids(f" {word}")[0]].item()
        behind += f" {word}"
    return total


def mixed(model: Model, prompt: str, patch: tuple[int, int] | None = None) -> list[float]:
    """SUMMED of the sets of MIXED."""
    up, down = (sum(sequence(model, prompt, text, patch) for text in MIXED[name]) for name in ("answer", "foil"))
    return [math.log(up) - math.log(down), math.log(up), up, up - down]


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_sets_of_one_token_each_are_logarithms_of_sums(model: Model, engine: str):
    trace = ct.trace(model, pair(**ONE), components=["resid_post"], engine=engine)
    for run, prompt in (("clean", CLEAN), ("corrupt", CORRUPT)):
        logits = bare(model, prompt)[-1]
        assert_allclose(told(trace, run, *SUMMED), by_hand(logits), atol=1e-5)
        answers = [ids(text)[0] for text in ONE["answer"]]
        assert told(trace, run, "neg_rank") == [-float((logits > logits[answers].max()).sum())]
        assert_allclose(told(trace, run, "logit"), [logits[answers].logsumexp(-1).item()], atol=1e-5)
    base, sizes = np.array(by_hand(bare(model, CORRUPT)[-1])), []
    for layer, position in ((0, 2), (1, 2), (2, 5), (3, 5)):
        expected = np.array(by_hand(bare(model, CORRUPT, patch=(layer, position))[-1])) - base
        cell = trace.effects.restoration.sel(pair="p", component="resid_post", layer=layer, position=position)
        assert_allclose(cell.sel(metric=list(SUMMED)), expected, atol=1e-5)
        sizes.append(abs(expected[0]))
    assert max(sizes) > 0.1


@pytest.mark.parametrize("engine", ["packed", "replay"])
def test_sets_of_several_tokens_are_scored_by_the_probabilities_of_the_sequences(model: Model, engine: str):
    trace = ct.trace(model, pair(**MIXED), components=["resid_post"], engine=engine)
    for run, prompt in (("clean", CLEAN), ("corrupt", CORRUPT)):
        assert_allclose(told(trace, run, *SUMMED), mixed(model, prompt), atol=1e-5)
        assert np.isnan(told(trace, run, "logit", "neg_rank")).all()
    base, sizes = np.array(mixed(model, CORRUPT)), []
    for layer, position in ((0, 2), (2, 5)):
        expected = np.array(mixed(model, CORRUPT, (layer, position))) - base
        cell = trace.effects.restoration.sel(pair="p", component="resid_post", layer=layer, position=position)
        assert_allclose(cell.sel(metric=list(SUMMED)), expected, atol=1e-5)
        sizes.append(abs(expected[0]))
    assert max(sizes) > 0.1
    assert "an answer of several tokens has no single rank" in trace.effects.reason.sel(metric="neg_rank").values


def test_a_set_of_one_text_is_that_text_to_the_bit(model: Model):
    one, listed = (
        ct.trace(model, pair(answer=answer, foil=foil)) for answer, foil in ((" w7", " w8"), ([" w7"], [" w8"]))
    )
    assert one.effects.equals(listed.effects)
    assert listed.provenance["pairs"] == one.provenance["pairs"]


def test_one_token_is_measured_as_ever_to_the_bit_beside_sets_too():
    """The formulas of the metrics before there were sets; the same worlds alone and beside larger sets."""
    logits, clean = torch.randn(2, 40, 300, generator=torch.Generator().manual_seed(0)).unbind()
    answer, foil = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(1)).unbind()
    log_probs, clean = logits.log_softmax(-1), clean.log_softmax(-1)
    rows = torch.arange(40)
    before = {
        "logit_diff": logits[rows, answer] - logits[rows, foil],
        "log_prob": log_probs[rows, answer],
        "logit": logits[rows, answer],
        "prob": log_probs[rows, answer].exp(),
        "neg_kl": -(clean.exp() * (clean - log_probs)).sum(-1),
        "neg_rank": -(logits > logits[rows, answer][:, None]).sum(-1).float(),
        "entropy": -(log_probs.exp() * log_probs).sum(-1),
    }
    alone = measure_logits(logits, measures_of([*BUILT_IN.values()]), answer[:, None], foil[:, None], clean)
    padded = torch.stack([answer, torch.full_like(answer, NO_TOKEN)], -1)
    padded[7] = torch.tensor([3, 4])
    beside = measure_logits(logits, measures_of([*BUILT_IN.values()]), padded, foil[:, None], clean)
    for name, expected in before.items():
        assert torch.equal(alone[:, METRICS.index(name)], expected.double()), name
        assert torch.equal(beside[rows != 7][:, METRICS.index(name)], expected[rows != 7].double()), name


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"answer": []}, "pair 'p': answer is an empty list. Give a text, several of them, or leave it out."),
        ({"foil": ()}, "pair 'p': foil is an empty list"),
        ({"answer": [" w7", ""]}, "pair 'p': answer, text 1 is empty"),
        ({"answer": [" w7", 3]}, "pair 'p': answer, text 1 must be a text, and is 3"),
        ({"answer": {" w7", " w9"}}, "pair 'p': answer must be a text or a list of texts, and is {"),
        ({"foil": [" w8", " w2", " w8"]}, "pair 'p': foil has ' w8' twice, which would count twice"),
        ({"answer": ["\ud800", " w7"]}, "pair 'p': answer, text 0 has half a letter"),
    ],
)
def test_a_set_that_cannot_be_meant_is_one_clear_error(fields: dict[str, Any], said: str):
    with pytest.raises(InvalidPair) as error:
        checked_texts(f"pair 'p': {next(iter(fields))}", *fields.values())  # the tests' own type checker is before Pair
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"answer": [" w7", " w8"]},
            "pair 'p': ' w8' is among the answers and the foils. Leave it out of one of them.",
        ),
        (
            {"answer": [" w7 w9", " w7"]},
            "'p': the answer ' w7 w9' begins with the tokens of ' w7' ( w7): it would",
        ),
        ({"answer": [" w7", " w9"], "foil": [" w9", " w7"]}, "' w7' is among the answers and the foils"),
        ({"answer": " w8"}, "answer and foil are the same token (' w8'): nothing to tell apart."),
    ],
)
def test_texts_that_would_count_twice_are_one_clear_error(fields: dict[str, Any], said: str):
    with pytest.raises(InvalidPair) as error:
        tokenize(pair(**fields), WORDS)
    assert said in str(error.value)


def test_sets_in_all_that_a_trace_says_and_is_written_to(model: Model, tmp_path: Path):
    trace = ct.trace(model, pair(**ONE), components=["resid_post"], metric="prob_diff")
    said = document(trace.measurements)
    assert (said["pairs"][0]["answer"], said["pairs"][0]["foil"]) == (ONE["answer"], ONE["foil"])
    assert said["unit"] == "probability"
    assert said["provenance"]["pairs"][0]["answer"] == ONE["answer"]
    assert " w7 | w21 | w3" in trace.summary()
    assert "w7 | w21 | w3" in trace.to_html()
    again = ct.open_trace(trace.save(tmp_path / "saved"))
    assert again.measurements.pairs.answer.item() == json.dumps(ONE["answer"])
    assert again.effects.equals(trace.effects)
    assert "prob_diff" in trace.to_dataframe().columns


def test_many_pairs_of_all_kinds_are_as_alone_and_a_run_folder_goes_on(model: Model, tmp_path: Path):
    kinds = {"plain": {}, "one": ONE, "mixed": MIXED, "none": ONE | {"foil": None}}
    pairs = [pair(**fields, id=id) for id, fields in kinds.items()]
    folder = tmp_path / "run"
    options: dict[str, Any] = {"components": ["mlp_out"], "metric": "log_prob"}
    together = ct.run(model, pairs, folder, **options)
    for each in pairs:
        alone = ct.trace(model, each, **options)
        both = (found.effects.restoration.sel(pair=each.id) for found in (together, alone))
        ours, theirs = (found.where(found.metric != "neg_rank", drop=True) for found in both)
        assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert ct.run(model, pairs, folder, **options).effects.equals(together.effects)
    changed = [*pairs[:1], pair(**(ONE | {"foil": [" w8"]}), id="one"), *pairs[2:]]
    with pytest.raises(ct.CausalTracingError, match="was begun with something else: pairs_sha256"):
        ct.run(model, changed, folder, **options)


def test_what_does_not_prefer_any_answer_and_what_no_answer_is(model: Model):
    expected = [bare(model, CLEAN)[-1].float().log_softmax(-1)]
    both = tokenize(pair(**ONE), WORDS)
    (found,) = preferences(plain_backend(model), [both], expected)
    assert found == pytest.approx(by_hand(bare(model, CLEAN)[-1])[0], abs=1e-4)
    (shown,) = ct.preview(model, pair(**ONE))
    assert "not one of the answers  w7 | w21 | w3 (choice" in str(shown)
    (shown,) = ct.preview(model, pair(**MIXED))
    assert "3 of 4 answers are several tokens, up to 3 tokens ( w5| w6| w1): scored by the sum" in str(shown)


@pytest.mark.parametrize(
    ("fields", "by"), [(ONE, lambda model: by_hand(bare(model, CLEAN)[-1])), (MIXED, lambda model: mixed(model, CLEAN))]
)
def test_what_estimates_have_the_gradient_of_is_the_metric(model: Model, fields: dict[str, Any], by: Any):
    one, expected = tokenize(pair(**fields), WORDS), dict(zip(SUMMED, by(model), strict=True))
    clean = bare(model, CLEAN)[-1].float().log_softmax(-1)
    for metric in SUMMED if fields is ONE else ("prob", "prob_diff"):
        found = 0.0
        for term in terms_of(one, BUILT_IN[metric], clean):
            with torch.no_grad():
                logits = model.network(torch.tensor([[*one.clean.tokens, *term.behind]])).logits
            found += term.weight * term.measure(logits[:, -term.keep :]).item()
        assert found == pytest.approx(expected[metric], abs=1e-5)
    assert ct.attribute(model, pair(**fields), metric="prob_diff", verify=2, sample=2).agreement.notnull().values.all()


def test_no_estimate_is_made_of_what_does_not_add_up(model: Model):
    with pytest.raises(InvalidOption, match="no estimate of logit_diff: only their probabilities add up"):
        ct.attribute(model, pair(**MIXED), components=["mlp_out"])


def test_foils_that_a_metric_does_not_read_are_in_no_estimates_way(model: Model):
    several, asked = [" w8 w2", " w2 w3"], {"metric": "log_prob", "components": ["mlp_out"], "verify": 2, "sample": 2}
    with_foils, without = (ct.attribute(model, pair(foil=foil), **asked) for foil in (several, None))
    for found, expected in zip(with_foils.checked, without.checked, strict=True):
        assert found.at == expected.at
        assert_allclose([found.estimate, found.exact], [expected.estimate, expected.exact], atol=1e-5)


def test_sets_are_spelled_as_json_lists_where_there_is_nothing_but_text(tmp_path: Path):
    file = tmp_path / "pairs.csv"
    file.write_text('clean,corrupt,answer,foil\na b,a c,"["" he"", "" his""]"," she"\na b,a c,"[""","x]"\n')
    first, second = ct.read_pairs(file)
    assert (first.answer, first.foil) == ((" he", " his"), " she")
    assert (second.answer, second.foil) == ('["', "x]")
    file.write_text('clean,corrupt,answer\na b,a c,"["" he"", his""]"\n')
    with pytest.raises(InvalidPair, match="line 2: answer begins and ends as a list of texts, and is none"):
        ct.read_pairs(file)
    lines = tmp_path / "pairs.jsonl"
    lines.write_text(json.dumps({"clean": "a b", "answer": [" he", " his"], "foil": '["x"]'}))
    assert ct.read_pairs(lines)[0].answer == (" he", " his")
    assert ct.read_pairs(lines)[0].foil == '["x"]'  # a text is a text, whatever it looks like
    assert ct.read_pairs([{"clean": "a", "answer": np.array([" b", " c"])}])[0].answer == (" b", " c")
    with pytest.raises(InvalidPair, match=r"row 0: answer, text 1 has a NUL"):
        ct.read_pairs([{"clean": "a", "answer": [" b", "\0"]}])
