"""A trace as lines of Python that make it again."""

from collections.abc import Mapping
from typing import Any

from causal_tracing.experiments.repeat import pair_to_dict
from causal_tracing.models.model import Model
from causal_tracing.prompts.pairs import Pair


def python_lines(model: Model, pair: Pair, options: Mapping[str, Any]) -> str:
    """The lines: the model (or where it came from), the pair, the trace with the options that were given."""
    fields = {name: value for name, value in pair_to_dict(pair).items() if name != "id"}
    given = "".join(f"    {name}={value!r},\n" for name, value in fields.items())
    words = "".join(f", {name}={value!r}" for name, value in options.items())
    traced = f"trace = ct.trace(model, pair{words})"
    return f"import causal_tracing as ct\n\n{_loaded(model)}\npair = ct.Pair(\n{given})\n{traced}\n"


def _loaded(model: Model) -> str:
    if model.source.get("kind") in (None, "memory") or "nnsight" in model.source:
        return f"# model is {model.name}, as it was handed to explore()"
    more = f", revision={model.source['commit']!r}" if model.source.get("commit") else ""
    more += f", dtype={model.dtype!r}" if model.dtype != "float32" else ""
    return f"model = ct.load({model.source.get('path', model.name)!r}{more})"
