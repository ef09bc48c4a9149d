"""Models that somebody wrote: whatever they take, give and read, what is offered is exact."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

import causal_tracing as ct
from causal_tracing.errors import InvalidPair, UnsupportedModel
from loaded import WORDS
from own_networks import AT, CLEAN, CORRUPT, PAIR, WIDTH, Layer, Own, made, own_logits, restored_by_hand
from tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


class GivesATensor(Own):
    def forward(self, input_ids: Tensor, temperature: float = 1.0) -> Tensor:
        return self.logits(input_ids) / temperature


class GivesATuple(Own):
    def forward(self, input_ids: Tensor, **options: Any) -> Any:
        return self.logits(input_ids), "state"


class GivesADict(Own):
    def forward(self, input_ids: Tensor, use_cache: bool = True) -> Any:
        assert not use_cache
        return {"past": None, "logits": self.logits(input_ids)}


class TakesAnotherName(Own):
    def forward(self, idx: Tensor, targets: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return CausalLMOutput(logits=self.logits(idx))


class TakesNamesAlone(Own):
    def forward(self, *, input_ids: Tensor, **_: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return CausalLMOutput(logits=self.logits(input_ids))


class TakesItByPlaceAlone(Own):
    def forward(self, input_ids: Tensor, /) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return CausalLMOutput(logits=self.logits(input_ids))


class LayersGiveLists(Own):
    give = staticmethod(lambda stream: [stream, None])
    take = staticmethod(lambda given: given[0])


class Named(NamedTuple):
    stream: Tensor
    weights: Tensor | None = None


class LayersGiveNamedTuples(Own):
    give = staticmethod(Named)
    take = staticmethod(lambda given: given.stream)


class LayersGiveDicts(Own):
    give = staticmethod(lambda stream: {"length": stream.shape[1], "stream": stream})
    take = staticmethod(lambda given: given["stream"])


class LayersGiveOutputs(Own):
    give = staticmethod(lambda stream: BaseModelOutput(last_hidden_state=stream))
    take = staticmethod(lambda given: given.last_hidden_state)


@dataclass(frozen=True)
class Given:
    length: int
    stream: Tensor


class LayersGiveDataclasses(Own):
    give = staticmethod(lambda stream: Given(stream.shape[1], stream))
    take = staticmethod(lambda given: given.stream)


FORMS = [Own, GivesATensor, GivesATuple, GivesADict, TakesAnotherName, TakesNamesAlone, TakesItByPlaceAlone]
LAYERS = [LayersGiveLists, LayersGiveNamedTuples, LayersGiveDicts, LayersGiveOutputs, LayersGiveDataclasses]


@pytest.mark.parametrize("kind", [*FORMS, *LAYERS])
def test_whatever_its_forward_takes_and_gives_its_layers_are_traced(kind: Any):
    network = made(kind)
    model = ct.load(network, tokenizer=WORDS)
    assert {"attn_out", "mlp_out", "resid_pre"} <= {*model.anatomy.components}
    trace = ct.trace(model, PAIR, components=["resid_pre"], neurons={1: []}, neuron_positions=[4], progress=False)
    for layer, position in ((1, 1), (2, 4)):
        said = trace.effects.restoration.sel(AT).sel(component="resid_pre", layer=layer).isel(position=position)
        expected = restored_by_hand(network, f"blocks.{layer}", position, own_logits)
        assert said.item() == pytest.approx(expected, abs=1e-5)


class TakesSeveral(Layer):
    """Is given all that the one before gave, in one thing."""

    def forward(self, given: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if isinstance(given, Given):
            return replace(given, stream=super().forward(given.stream))
        if isinstance(given, dict):
            return {**given, "stream": super().forward(given["stream"])}
        return (super().forward(given[0]), *given[1:])


class LayersTakeTuples(Own):
    begin: Callable[[Tensor], Any] = staticmethod(lambda stream: (stream, None))
    end: Callable[[Any], Tensor] = staticmethod(lambda given: given[0])

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(TakesSeveral(lambda stream: stream) for _ in range(3)))
        for weight in self.blocks.parameters():
            nn.init.normal_(weight, std=0.25)

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        return self.out(type(self).end(self.blocks(type(self).begin(stream))))


class LayersTakeDicts(LayersTakeTuples):
    begin = staticmethod(lambda stream: {"length": stream.shape[1], "stream": stream})
    end = staticmethod(lambda given: given["stream"])


class LayersTakeDataclasses(LayersTakeTuples):
    begin = staticmethod(lambda stream: Given(stream.shape[1], stream))
    end = staticmethod(lambda given: given.stream)


@pytest.mark.parametrize("kind", [LayersTakeTuples, LayersTakeDicts, LayersTakeDataclasses])
def test_layers_may_take_all_that_the_one_before_gave_in_one_thing(kind: Any):
    network = made(kind)
    model = ct.load(network, tokenizer=WORDS)
    trace = ct.trace(model, PAIR, components=["resid_pre", "attn_out", "resid_mid"], progress=False)
    for layer, position in ((1, 1), (2, 4)):
        said = trace.effects.restoration.sel(AT).sel(component="resid_pre", layer=layer).isel(position=position)
        expected = given_by_hand(network, f"blocks.{layer - 1}", position, kind.begin, kind.end)
        assert said.item() == pytest.approx(expected, abs=1e-5)


def given_by_hand(network: Any, path: str, position: int, begin: Any, end: Any) -> float:
    """What comes back where what a module gives is the clean run's at one token."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        seen.append(end(output).clone())

    def put(_: nn.Module, __: Any, output: Any) -> Any:
        changed = end(output).clone()
        changed[:, position] = seen[0][:, position]
        return begin(changed)

    found = []
    for tokens, hook in ((CLEAN, keep), (CORRUPT, put), (CORRUPT, lambda *_: None)):
        handle = network.get_submodule(path).register_forward_hook(hook)
        with torch.no_grad():
            answer = own_logits(network, tokens)
        handle.remove()
        found.append((answer[9] - answer[12]).item())
    return found[1] - found[2]


class PastItsWords(Own):
    """Reads the table of its words, and not by the module."""

    def logits(self, tokens: Tensor) -> Tensor:
        stream = nn.functional.embedding(tokens, self.words.weight)  # pyright: ignore[reportArgumentType]
        for block in self.blocks:
            stream = block(stream)
        return self.out(stream)


def test_noise_on_words_that_no_module_reads_is_refused():
    model = ct.load(made(PastItsWords), tokenizer=WORDS)
    noised = ct.Pair(clean=PAIR.clean, answer=" w9", foil=" w12", subject="w17")
    said = r"The module that reads tokens was called 0 times in one run, .*\. Give a corrupt prompt instead\."
    with pytest.raises(UnsupportedModel, match=said):
        ct.trace(model, noised, noise=ct.Noise(scale=3.0, draws=1), progress=False)


class OnesAmongZeros(Own):
    """Reads tokens as ones among zeros, by a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(97, WIDTH)

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(nn.functional.one_hot(tokens, 97).float())
        for block in self.blocks:
            stream = block(stream)
        return self.out(stream)


def test_a_matrix_that_reads_tokens_knows_as_many_as_it_has_columns():
    network = made(OnesAmongZeros)
    model = ct.load(network, tokenizer=WORDS)
    assert model.vocabulary == 97
    trace = ct.trace(model, PAIR, components=["resid_pre"], progress=False)
    said = trace.effects.restoration.sel(AT).sel(component="resid_pre", layer=1).isel(position=4)
    assert said.item() == pytest.approx(restored_by_hand(network, "blocks.1", 4, own_logits), abs=1e-5)


def test_a_word_that_the_head_does_not_know_is_named():
    network = tiny_model("llama", num_hidden_layers=1)
    network.lm_head = nn.Linear(32, 60, bias=False)
    model = ct.load(network, tokenizer=WORDS)
    pair = ct.Pair(clean="w5 w17 w32", corrupt="w5 w23 w32", answer=" w9", foil=" w80")
    with pytest.raises(InvalidPair, match=r"asks for the token 'w80' \(id 80\), and .* gives logits of 60 words"):
        ct.trace(model, pair, progress=False)
