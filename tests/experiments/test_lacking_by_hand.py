"""What models that somebody wrote lack is said of each, by what was found."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

import causal_tracing as ct
from causal_tracing.errors import ComponentNotOffered, EngineNote, UnsupportedModel
from loaded import WORDS
from own_networks import WIDTH, Layer, Own, made

pytestmark = pytest.mark.filterwarnings("ignore::causal_tracing.errors.Note")


class LastLogits(Own):
    def forward(self, input_ids: Tensor) -> Any:
        return CausalLMOutput(logits=self.logits(input_ids)[:, -1:])


class FlatLogits(Own):
    def forward(self, input_ids: Tensor) -> Any:
        return CausalLMOutput(logits=self.logits(input_ids).flatten(0, 1))


class NoLogits(Own):
    def forward(self, input_ids: Tensor) -> Any:
        return BaseModelOutput(last_hidden_state=self.logits(input_ids))


class LayersGiveObjects(Own):
    give = staticmethod(lambda stream: SimpleNamespace(stream=stream))
    take = staticmethod(lambda given: given.stream)


class LayersGiveWeightsFirst(Own):
    give = staticmethod(lambda stream: (torch.zeros(1, 1, 6, 6), stream))
    take = staticmethod(lambda given: given[1])


class Placed(Layer):
    """Takes positions before the stream."""

    def forward(self, places: Tensor, stream: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(stream + places)


class LayersTakePlacesFirst(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Placed(type(self).give) for _ in range(3)])

    def logits(self, tokens: Tensor) -> Tensor:
        stream, places = self.words(tokens), self.places(torch.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            stream = block(places, stream)
        return self.out(stream)


class OneLayerTwice(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[2] = self.blocks[0]


class ResidualOutside(Own):
    """What its layers give is added to the stream by the network."""

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens)
        for block in self.blocks:
            stream = stream + block(stream)
        return self.out(stream)


class NoHead(Own):
    """Its backbone alone: as many numbers a token as the stream is wide."""

    def forward(self, input_ids: Tensor) -> Any:
        return self.logits(input_ids)[..., :WIDTH]


class NoWords(Own):
    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (LastLogits, r"for 6 tokens it gives the logits of 1\. Let its forward give those of every token"),
        (FlatLogits, r"its forward returns a CausalLMOutput of logits with the shape \[6, 97\]\."),
        (NoLogits, r"logits \[row, token, word\] are needed, and .* a BaseModelOutput of last_hidden_state\."),
        (
            LayersGiveObjects,
            r"no list of layers that a text passes: members of blocks give a SimpleNamespace, and no stream\.",
        ),
        (LayersGiveWeightsFirst, r"member 0 of blocks is given \[1, 6, 32\] numbers and gives \[1, 1, 6, 6\]"),
        (LayersTakePlacesFirst, r"what one of its blocks gives is the next one's argument 1, .* take the stream first"),
        (OneLayerTwice, r"uses one module as several layers: of 3 entries of blocks, 2 are modules of their own\."),
        (ResidualOutside, r"its logits are made of more than what the last of its blocks gives .* added outside of"),
        (NoHead, r"reads 97 words, and gives 32 numbers for each token, which are no logits of words\."),
        (NoWords, r"Give its class a get_input_embeddings\(\) that returns it\."),
    ],
)
def test_what_it_lacks_is_named(kind: Any, said: str):
    with pytest.raises(UnsupportedModel, match=said):
        ct.load(made(kind), tokenizer=WORDS)


class SharedMlp(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[2].mlp = self.blocks[0].mlp


class NormBehind(Own):
    def __init__(self) -> None:
        super().__init__()
        self.blocks.append(nn.LayerNorm(WIDTH))


@pytest.mark.parametrize(
    ("kind", "component", "said"),
    [
        (
            SharedMlp,
            "mlp_out",
            r"Layers share modules \(mlp of layer 2 is mlp of layer 0\), and what is written",
        ),
        (NormBehind, "attn_out", r"in layer 3 no module was found .*\. That layer is a LayerNorm alone\."),
    ],
)
def test_what_its_modules_are_is_said_of_a_part_that_is_missing(kind: Any, component: str, said: str):
    with pytest.raises(ComponentNotOffered, match=said):
        ct.load(made(kind), tokenizer=WORDS).anatomy.require(component)


class Halves(Own):
    """Layers in two lists."""

    def __init__(self) -> None:
        super().__init__()
        self.further = nn.ModuleList([Layer(type(self).give) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH)])

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens)
        for block in (*self.blocks, *self.further, *self.norms):
            stream = block(stream)
        return self.out(stream)


def test_layers_in_several_lists_are_said():
    with pytest.warns(EngineNote, match=r"Those of blocks alone are traced, .* such as those of further\."):
        assert ct.load(made(Halves), tokenizer=WORDS).num_layers == 3
