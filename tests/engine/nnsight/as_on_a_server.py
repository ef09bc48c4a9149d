"""Two families and six components, by nnsight's dry run of a server and by replay: how far apart, and how far moved."""

import sys

sys.path.insert(0, sys.argv[1])
import causal_tracing as ct
from tiny import tiny_model, tiny_tokenizer

PAIR = ct.Pair(clean="the city of Rome is", corrupt="the city of Paris is", answer=" Rome", foil=" Paris")
SHARE = -0.5


def distance(log_probs, clean):
    return SHARE * (log_probs - clean).abs().sum(-1)


def of_two(first, second):
    return lambda log_probs, clean, answers, foils: first(log_probs, clean) - second * log_probs.gather(-1, foils)[:, 0]


ASKED = {
    "metric": ["logit_diff", ct.Metric("of_two", "nats", of_two(distance, 0.25), takes="log_probs", needs_foil=True)],
    "components": ["resid_pre", "attn_out", "mlp_out", "resid_post"],
    "heads": ["z"],
    "neurons": {1: [3, 5], 2: [7]},
    "progress": False,
}
for family, shape in (("llama", {}), ("gpt2", {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64})):
    network, tokenizer = tiny_model(family, **shape), tiny_tokenizer()
    plain, traced = ct.load(network, tokenizer), ct.load(network, tokenizer, remote="local")
    one, other = ct.trace(plain, PAIR, engine="replay", **ASKED), ct.trace(traced, PAIR, **ASKED)
    assert other.provenance["engine"] == "nnsight (local)", other.provenance["engine"]
    maps = [(one.effects, other.effects), (one.heads, other.heads), (one.neurons, other.neurons)]
    apart = [abs(a.restoration - b.restoration).max().item() for a, b in maps]
    moved = [abs(b.restoration.sel(metric=name)).max().item() for _, b in maps for name in ("logit_diff", "of_two")]
    print(max(apart), min(moved), *traced.backend.describe().components)
