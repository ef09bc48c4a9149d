"""Which parts of a language model carry a behaviour: exact causal tracing on any Hugging Face decoder."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = [
    "CausalTracingError",
    "Noise",
    "Pair",
    "Trace",
    "Write",
    "attribute",
    "check",
    "compare",
    "estimate",
    "load",
    "open_trace",
    "preview",
    "read_pairs",
    "run",
    "trace",
]

if TYPE_CHECKING:
    from causal_tracing.attribution import attribute
    from causal_tracing.comparing import compare
    from causal_tracing.engine.check import check
    from causal_tracing.errors import CausalTracingError
    from causal_tracing.loading import load
    from causal_tracing.noise import Noise
    from causal_tracing.pair_files import read_pairs
    from causal_tracing.previews import preview
    from causal_tracing.prompts import Pair
    from causal_tracing.runs import run
    from causal_tracing.traces import Trace, open_trace
    from causal_tracing.tracing import estimate, trace
    from causal_tracing.written import Write

# torch, transformers and xarray take seconds to import: they come with the first name that needs them.
_HOMES = {
    "CausalTracingError": "errors",
    "Noise": "noise",
    "Pair": "prompts",
    "Trace": "traces",
    "Write": "written",
    "attribute": "attribution",
    "check": "engine.check",
    "compare": "comparing",
    "estimate": "tracing",
    "load": "loading",
    "open_trace": "traces",
    "preview": "previews",
    "read_pairs": "pair_files",
    "run": "runs",
    "trace": "tracing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value  # a submodule of the same name must not hide the function
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
