"""A network that somebody wrote: layers, words and a head of its own; and what a patch in it gives, by bare hooks."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import causal_tracing as ct

CLEAN, CORRUPT = (5, 17, 32, 11, 40, 33, 8), (5, 23, 32, 11, 45, 33, 8)
PAIR = ct.Pair(
    clean=" ".join(f"w{n}" for n in CLEAN), corrupt=" ".join(f"w{n}" for n in CORRUPT), answer=" w9", foil=" w12"
)
AT = {"metric": "logit_diff", "pair": "pair-0"}
WIDTH, HEADS = 32, 4


class Layer(nn.Module):
    """Attention of its own, and an MLP; gives the stream as `give` makes it."""

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.joined, self.attn = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, stream: Tensor) -> Any:
        q, k, v = self.joined(self.norms[0](stream)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        heads = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        stream = stream + self.attn(heads.transpose(1, 2).flatten(2))
        return self.give(stream + self.mlp(self.norms[1](stream)))


class Own(PreTrainedModel):
    """Names neither its layers nor its head as others do."""

    config_class = PreTrainedConfig
    give: Callable[[Tensor], Any] = staticmethod(lambda stream: stream)
    take: Callable[[Any], Tensor] = staticmethod(lambda given: given)

    def __init__(self) -> None:
        config: Any = PreTrainedConfig()
        config.vocab_size, config.hidden_size, config.num_attention_heads = 97, WIDTH, HEADS
        super().__init__(config)
        self.words, self.places = nn.Embedding(97, WIDTH), nn.Embedding(32, WIDTH)
        self.blocks = nn.ModuleList([Layer(type(self).give) for _ in range(3)])
        self.out = nn.Linear(WIDTH, 97)
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.25)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def logits(self, tokens: Tensor) -> Tensor:
        stream = self.words(tokens) + self.places(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            stream = type(self).take(block(stream))
        return self.out(stream)

    def forward(self, input_ids: Tensor) -> Any:
        """As each takes and gives it."""
        return CausalLMOutput(logits=self.logits(input_ids))


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


def own_logits(network: Any, tokens: Sequence[int]) -> Tensor:
    return network.logits(torch.tensor([tokens]))[0, -1]


def restored_by_hand(
    network: Any, path: str, position: int, logits: Callable[[Any, Sequence[int]], Tensor], *, flat: bool = False
) -> float:
    """What comes back where a module's input at one token is the clean run's; `flat` is one without rows."""
    at = position if flat else (slice(None), position)
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].clone())

    def put(_: nn.Module, args: tuple[Any, ...]) -> Any:
        changed = args[0].clone()
        changed[at] = seen[0][at]
        return changed, *args[1:]

    found = []
    for tokens, hook in ((CLEAN, keep), (CORRUPT, put), (CORRUPT, None)):
        handle = network.get_submodule(path).register_forward_pre_hook(hook) if hook else None
        with torch.no_grad():
            answer = logits(network, tokens)
        found.append((answer[9] - answer[12]).item())
        if handle:
            handle.remove()
    return found[1] - found[2]
