"""What tests of an analysis need: networks whose effects are known by algebra, and a backend without any network.

Trace one, and compare what your analysis says with what is known:

    model, pair = circuit("and")                     # two components, A and B, and a value that needs both
    model, pair = lookup()                           # an identity is copied, looked up with the next, and moved
    model = fake_model(["the", "cat", "dog", "ran"]) # logits by a function of the run: no network
"""

from causal_tracing.testing.fake import FakeBackend, LinearToy, fake_model
from causal_tracing.testing.toys import (
    CIRCUITS,
    FACTS,
    Copy,
    Neuron,
    Neurons,
    ToyConfig,
    ToyLayer,
    ToyNetwork,
    ToyTokenizer,
    circuit,
    lookup,
    toy_model,
)

__all__ = [
    "CIRCUITS",
    "FACTS",
    "Copy",
    "FakeBackend",
    "LinearToy",
    "Neuron",
    "Neurons",
    "ToyConfig",
    "ToyLayer",
    "ToyNetwork",
    "ToyTokenizer",
    "circuit",
    "fake_model",
    "lookup",
    "toy_model",
]
