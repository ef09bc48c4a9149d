"""Controls: nothing is left of what the model knows, or of what the pairs ask; and everything says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.models.model import Model
from causal_tracing.patching.controls import randomised, shuffled
from tiny import tiny_model, tiny_tokenizer

CITIES = ["Rome", "Paris", "Mary", "John"]


def pair(n: int, answer: str | None = None, **fields: Any) -> ct.Pair:
    clean, corrupt = CITIES[n % 4], CITIES[(n + 1) % 4]
    prompts: dict[str, Any] = {"clean": f"the city in {clean}", "corrupt": f"the city in {corrupt}"}
    answers: dict[str, Any] = {"answer": f" {answer or n}", "foil": f" {n + 20}"}
    return ct.Pair(**(prompts | answers | fields))


@pytest.fixture(scope="module")
def model() -> Model:
    return ct.load(tiny_model(), tokenizer=tiny_tokenizer())


def test_random_weights_are_the_same_numbers_in_another_order(model: Model):
    before = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
    control = randomised(model, 0)
    again, other = randomised(model, 0), randomised(model, 1)
    for name, parameter in model.network.named_parameters():
        assert torch.equal(parameter, before[name])  # the model itself is left alone
        mixed = control.network.get_parameter(name)
        assert torch.equal(mixed.flatten().sort().values, parameter.flatten().sort().values)
        assert torch.equal(mixed, again.network.get_parameter(name))
        if parameter.std() > 0:
            assert not torch.equal(mixed, parameter)
            assert not torch.equal(mixed, other.network.get_parameter(name))


def test_weights_that_are_kept_elsewhere_cannot_be_reordered():
    network = cpu_offload(tiny_model(), execution_device=torch.device("cpu"))
    message = "accelerate keeps some of LlamaForCausalLM's elsewhere.* Use control='shuffled-pairs', or load"
    with pytest.raises(InvalidOption, match=message):
        ct.trace(ct.load(network, tokenizer=tiny_tokenizer()), pair(0), control="random-weights")


def test_a_trace_of_random_weights_is_that_of_the_mixed_model(model: Model):
    trace = ct.trace(model, pair(0), control="random-weights", seed=3)
    alone = ct.trace(randomised(model, 3), pair(0), seed=3)
    assert trace.effects.restoration.equals(alone.effects.restoration)
    assert not trace.effects.restoration.equals(ct.trace(model, pair(0)).effects.restoration)
    assert "Warning: This is a control: the model's parameters are in random order" in trace.summary()


@pytest.mark.parametrize("answers", [list("abcdef"), list("aaabbb"), list("aabbcd"), list("abaabb")])
def test_shuffled_pairs_all_get_another_ones_answer(answers: list[str]):
    pairs = [pair(n, answer, foil=" x") for n, answer in enumerate(answers)]
    for seed in range(5):
        found = shuffled(pairs, seed)
        assert sorted(str(p.answer) for p in found) == sorted(str(p.answer) for p in pairs)
        assert all(new.answer != old.answer for new, old in zip(found, pairs, strict=True))
        assert [(p.clean, p.corrupt) for p in found] == [(p.clean, p.corrupt) for p in pairs]
    assert len({tuple(p.answer for p in shuffled(pairs, seed)) for seed in range(20)}) > 1 or len(set(answers)) == 2


def test_pairs_that_mostly_share_an_answer_cannot_be_shuffled():
    with pytest.raises(InvalidOption, match=r"3 of 4 pairs have the same one \(' a'"):
        shuffled([pair(n, answer, foil=" x") for n, answer in enumerate("aaab")], 0)


def test_a_trace_of_shuffled_pairs_measures_the_others_answers(model: Model):
    pairs = [pair(n) for n in range(4)]
    trace = ct.trace(model, pairs, control="shuffled-pairs")
    expected = ct.trace(model, shuffled(pairs, 0))
    assert trace.effects.restoration.equals(expected.effects.restoration)
    assert [row["answer"] for row in trace.provenance["pairs"]] == [p.answer for p in pairs]  # as they were given
    assert "each pair was asked for another pair's answer" in trace.summary()
    with pytest.raises(InvalidOption, match="There is no control 'random'"):
        ct.trace(model, pairs, control="random")


def test_a_run_keeps_by_the_real_answers_and_measures_the_control(model: Model, tmp_path: Path):
    pairs = [pair(n, id=f"p{n}") for n in range(4)]
    control = ct.run(model, pairs, tmp_path / "control", keep="preferred", control="shuffled-pairs")
    real = ct.run(model, pairs, tmp_path / "real", keep="preferred")
    assert control.provenance["dropped"] == real.provenance["dropped"]
    assert control.measurements.pairs.answer.values.tolist() != real.measurements.pairs.answer.values.tolist()
    assert control.provenance["options"]["control"] == "shuffled-pairs"
    again = ct.run(model, pairs, tmp_path / "control", keep="preferred", control="shuffled-pairs")
    assert again.effects.equals(control.effects)
