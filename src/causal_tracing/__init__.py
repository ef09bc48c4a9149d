"""Which parts of a language model carry a behaviour: exact causal tracing on any Hugging Face decoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "CausalTracingError",
    "Metric",
    "Noise",
    "Pair",
    "Trace",
    "Write",
    "attribute",
    "check",
    "circuit",
    "compare",
    "estimate",
    "explore",
    "from_transformer_lens",
    "knockout",
    "ledger",
    "load",
    "open_trace",
    "paths",
    "preview",
    "read_pairs",
    "run",
    "trace",
]

if TYPE_CHECKING:
    from causal_tracing.engine.checks.check import check
    from causal_tracing.errors import CausalTracingError
    from causal_tracing.experiments.attribute import attribute
    from causal_tracing.experiments.circuit import circuit
    from causal_tracing.experiments.compare import compare
    from causal_tracing.experiments.knockout import knockout
    from causal_tracing.experiments.ledger import ledger
    from causal_tracing.experiments.load import load
    from causal_tracing.experiments.open_trace import open_trace
    from causal_tracing.experiments.paths import paths
    from causal_tracing.experiments.run import run
    from causal_tracing.experiments.trace import estimate, trace
    from causal_tracing.experiments.trace_result import Trace
    from causal_tracing.explorer.start import explore
    from causal_tracing.interventions.noise import Noise
    from causal_tracing.interventions.write import Write
    from causal_tracing.patching.metrics.metric import Metric
    from causal_tracing.patching.preview import preview
    from causal_tracing.prompts.files import read_pairs
    from causal_tracing.prompts.pairs import Pair
    from causal_tracing.results.transformer_lens import from_transformer_lens as from_transformer_lens

# torch, transformers and xarray take seconds to import: they come with the first name that needs them.
_HOMES = {
    "CausalTracingError": "errors",
    "Metric": "patching.metrics.metric",
    "Noise": "interventions.noise",
    "Pair": "prompts.pairs",
    "Trace": "experiments.trace_result",
    "Write": "interventions.write",
    "attribute": "experiments.attribute",
    "check": "engine.checks.check",
    "circuit": "experiments.circuit",
    "compare": "experiments.compare",
    "estimate": "experiments.trace",
    "explore": "explorer.start",
    "from_transformer_lens": "results.transformer_lens",
    "knockout": "experiments.knockout",
    "ledger": "experiments.ledger",
    "load": "experiments.load",
    "open_trace": "experiments.open_trace",
    "paths": "experiments.paths",
    "preview": "patching.preview",
    "read_pairs": "prompts.files",
    "run": "experiments.run",
    "trace": "experiments.trace",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # a submodule of the same name must not hide the function
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
