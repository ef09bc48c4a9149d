"""Networks written by hand, whose effects are known by algebra, behind the same seam as real models.

The weights are small whole numbers and halves, so that every effect is exact in float32.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from causal_tracing.errors import InvalidOption, InvalidPair, nearest
from causal_tracing.interventions.sites import MEDIATORS
from causal_tracing.models.anatomy import Anatomy, Layout, Sum
from causal_tracing.models.model import Model
from causal_tracing.prompts.pairs import Pair

Number = int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyConfig:
    """What is asked of a Hugging Face configuration."""

    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    max_position_embeddings: int = 64
    model_type: str = "toy"

    def get_text_config(self) -> "ToyConfig":
        """Itself: there is nothing but text."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Neuron:
    """relu(bias + Σ reads · stream), added to the stream with the weights `writes`. Keys are dimensions."""

    reads: Mapping[int, Number] = field(default_factory=dict)
    bias: Number = 0
    writes: Mapping[int, Number] = field(default_factory=dict)


class Neurons(nn.Module):
    """An MLP of neurons, token by token. Without neurons it adds nothing."""

    def __init__(self, width: int, neurons: Sequence[Neuron] = ()) -> None:
        super().__init__()
        self.reads = nn.Parameter(torch.zeros(width, len(neurons)))
        self.bias = nn.Parameter(torch.tensor([float(neuron.bias) for neuron in neurons]))
        self.writes = nn.Parameter(torch.zeros(len(neurons), width))
        with torch.no_grad():
            for n, neuron in enumerate(neurons):
                for dimension, weight in neuron.reads.items():
                    self.reads[dimension, n] = weight
                for dimension, weight in neuron.writes.items():
                    self.writes[n, dimension] = weight

    def forward(self, hidden_states: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """What the neurons add to each token."""
        return relu(hidden_states @ self.reads + self.bias) @ self.writes


class Copy(nn.Module):
    """Attention to the token that stands `back` places before: it copies dimensions (from: to). Without any, nothing.

    A token that has no such token before it gets zeros.
    """

    def __init__(self, width: int, moves: Mapping[int, int] | None = None, *, back: int = 0) -> None:
        super().__init__()
        self.back = back
        self.moves = nn.Parameter(torch.zeros(width, width))
        with torch.no_grad():
            for source, target in (moves or {}).items():
                self.moves[source, target] = 1.0

    def forward(self, hidden_states: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """What each token reads from the one before it."""
        length = hidden_states.shape[1]
        return pad(hidden_states @ self.moves, (0, 0, self.back, 0))[:, :length]


class ToyLayer(nn.Module):
    """A sequential layer: attention is added to the stream, then the MLP of the sum."""

    def __init__(self, self_attn: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp

    def forward(self, hidden_states: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """The stream behind the layer."""
        middle = hidden_states + self.self_attn(hidden_states)
        return middle + self.mlp(middle)


class ToyNetwork(nn.Module):
    """Layers between an embedding and a linear head, with the face of a Hugging Face decoder."""

    def __init__(
        self,
        *,
        embedding: Float[Tensor, "vocab width"],
        layers: Sequence[ToyLayer],
        head: Float[Tensor, "width vocab"],
        bias: Float[Tensor, " vocab"],
    ) -> None:
        super().__init__()
        vocab, width = embedding.shape
        self.config = ToyConfig(num_hidden_layers=len(layers), hidden_size=width, vocab_size=vocab)
        self.embedding = nn.Embedding.from_pretrained(embedding, freeze=False)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Parameter(head)
        self.bias = nn.Parameter(bias)

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding of tokens."""
        return self.embedding

    def forward(
        self, input_ids: Int[Tensor, "batch token"], use_cache: bool = False, logits_to_keep: int = 0
    ) -> SimpleNamespace:
        """An object with `logits`, at the last `logits_to_keep` positions (0: at all). There is no cache."""
        hidden_states = self.embedding(input_ids)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        # From −0 on is from the start: with nothing said, all positions.
        return SimpleNamespace(logits=hidden_states[:, -logits_to_keep:] @ self.head + self.bias)


class ToyTokenizer:
    """Words between white space are tokens. Raises InvalidPair for a word that it does not know."""

    is_fast = True
    all_special_ids: tuple[int, ...] = ()

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)

    def __len__(self) -> int:
        return len(self.words)

    def __call__(self, text: str, **_: Any) -> dict[str, list[Any]]:
        """Ids, offsets and the (empty) mask of special tokens, whether asked for or not."""
        found = list(re.finditer(r"\S+", text))
        return {
            "input_ids": [self.token(match.group()) for match in found],
            "offset_mapping": [match.span() for match in found],
            "special_tokens_mask": [0] * len(found),
        }

    def token(self, word: str) -> int:
        """The id of a word."""
        if word not in self.words:
            raise InvalidPair(f"This toy does not know the word {word!r}. {nearest(word, self.words)}")
        return self.words.index(word)

    def decode(self, tokens: Sequence[int]) -> str:
        """The words with a space between them."""
        return " ".join(self.words[token] for token in tokens)

    def convert_ids_to_tokens(self, token: int) -> str | None:
        """The word of an id; None of one that a larger model has."""
        return self.words[token] if token < len(self.words) else None


def toy_model(network: ToyNetwork, words: Sequence[str], name: str) -> Model:
    """A network of yours and its vocabulary, as a model that can be traced."""
    # Not by `accept` (engine/checks/check.py): the parts are known, and a toy may have one that nothing depends on,
    # which that refuses.
    sums = tuple(Sum(gain=1.0, parts=((part, 1.0),), plain=True) for part in ("attn_out", "mlp_out"))
    layout = Layout(attn="self_attn", mlp="mlp", mid="mlp", sums=sums)
    whole = tuple((name, "a toy's attention and MLPs are whole.") for name in MEDIATORS)
    whole += (("mixer_out", "its layers have more than one part."),)
    anatomy = Anatomy(
        family="toy",
        layers="layers",
        layouts=(layout,) * len(network.layers),
        mixing=("resid_pre",),
        tokenwise=("resid_pre",),
        gathers=("attn_out",),
        refused=whole,
    )
    return Model(network=network.eval(), tokenizer=ToyTokenizer(words), name=name, anatomy=anatomy)


CIRCUIT_WORDS = ("the", "switch", "is", "on", "off", "it", "was", "then", "here", "now", "true", "false")
# The dimensions of a circuit's stream: one for each word, and these.
A, B, VALUE = range(len(CIRCUIT_WORDS), len(CIRCUIT_WORDS) + 3)
ON = CIRCUIT_WORDS.index("on")
# circuit -> how the value is made of: a, b, both of them, 1
CIRCUITS: dict[str, tuple[Number, Number, Number, Number]] = {
    "and": (0, 0, 1, 0),
    "or": (1, 1, -1, 0),
    "sum": (0.5, 0.5, 0, 0),
    "erasure": (1, -1, 0, 1),
    "xor": (1, 1, -2, 0),
}


def circuit(name: str) -> tuple[Model, Pair]:
    """A model whose logit_diff is the circuit's value of a and b, and a pair that switches both on (clean) or off.

    a is `mlp_out` of layer 0, b is `mlp_out` of layer 1 (both read the last token), the value is `mlp_out` of
    layer 2. "erasure" is a − b + 1. Raises InvalidOption.
    """
    if name not in CIRCUITS:
        raise InvalidOption(f"There is no circuit {name!r}. {nearest(name, CIRCUITS)}")
    a, b, both, always = CIRCUITS[name]
    value = [
        Neuron(reads={A: 1}, writes={VALUE: a}),
        Neuron(reads={B: 1}, writes={VALUE: b}),
        Neuron(reads={A: 1, B: 1}, bias=-1, writes={VALUE: both}),  # 1 where both are on, else 0
        Neuron(bias=1, writes={VALUE: always}),
    ]
    parts = [[Neuron(reads={ON: 1}, writes={A: 1})], [Neuron(reads={ON: 1}, writes={B: 1})], value]
    words, width = CIRCUIT_WORDS, VALUE + 1
    head = torch.zeros(width, len(words))
    head[VALUE, words.index("true")] = 1
    network = ToyNetwork(
        embedding=torch.eye(len(words), width),
        layers=[ToyLayer(Copy(width), Neurons(width, neurons)) for neurons in parts],
        head=head,
        bias=_unlikely(words, besides=("true", "false")),
    )
    pair = Pair(
        clean="the switch is on", corrupt="the switch is off", answer=" true", foil=" false", id=f"circuit-{name}"
    )
    return toy_model(network, words, f"toy {name}"), pair


FACTS = {("Eiffel", "Tower"): "Paris", ("Willis", "Tower"): "Chicago", ("Tower", "Bridge"): "London"}
LOOKUP_WORDS = ("the", "a", "Eiffel", "Willis", "Tower", "Bridge", "stands", "lies", "in", "Paris", "Chicago", "London")


def lookup() -> tuple[Model, Pair]:
    """A model of six layers that looks a fact up in three steps, and a pair whose subjects differ in one token.

    Attention of layer 1 copies each token's identity to the next token; the MLP of layer 2 knows what two tokens
    mean together (`FACTS`); attention of layer 4 copies that two places on: from a subject's last token to "in".
    The other parts add nothing. After the clean prompt the logits are Paris 1, Chicago 0.
    """
    words = LOOKUP_WORDS
    before, attribute = len(words), 2 * len(words)  # where the previous token's identity and the attributes begin
    width = attribute + len(FACTS)
    # Each fires where both of its words stand, the first before the second: 1 + 1 − 1.
    neurons = [
        Neuron(reads={before + words.index(first): 1, words.index(second): 1}, bias=-1, writes={attribute + n: 1})
        for n, (first, second) in enumerate(FACTS)
    ]
    attention = {
        1: Copy(width, {token: before + token for token in range(len(words))}, back=1),
        4: Copy(width, {attribute + n: attribute + n for n in range(len(FACTS))}, back=2),
    }
    mlp = {2: Neurons(width, neurons)}
    head = torch.zeros(width, len(words))
    for n, answer in enumerate(FACTS.values()):
        head[attribute + n, words.index(answer)] = 1
    network = ToyNetwork(
        embedding=torch.eye(len(words), width),
        layers=[ToyLayer(attention.get(n, Copy(width)), mlp.get(n, Neurons(width))) for n in range(6)],
        head=head,
        bias=_unlikely(words, besides=tuple(FACTS.values())),
    )
    pair = Pair(
        clean="the Eiffel Tower stands in",
        corrupt="the Willis Tower stands in",
        answer=" Paris",
        foil=" Chicago",
        subject="Eiffel Tower",
        corrupt_subject="Willis Tower",
        id="lookup",
    )
    return toy_model(network, words, "toy lookup"), pair


def _unlikely(words: Sequence[str], *, besides: Sequence[str]) -> Float[Tensor, " vocab"]:
    """Minus one logit for every word that is not an answer."""
    # So that an answer is the first choice, whichever of a toy's own values is patched.
    return torch.tensor([0.0 if word in besides else -1.0 for word in words])
