"""What a worker does, wherever it runs: it loads the model by its recipe, says what it found, and measures chunks."""

import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from causal_tracing.errors import EngineNote, InvalidOption, Note
from causal_tracing.experiments.chunks import Chunks, Order, Record
from causal_tracing.experiments.load import load
from causal_tracing.experiments.manifest import FACTS, facts
from causal_tracing.models.model import Model
from causal_tracing.models.recipe import Recipe
from causal_tracing.patching.metrics.metric import listed, name_of
from causal_tracing.patching.options.trace import Progress, RunOptions
from causal_tracing.prompts.pairs import Pair
from causal_tracing.results.storage.run_folder import Row


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """All that a worker is told: how the model is loaded, and the order. `number` tells it from its fellows."""

    recipe: Recipe
    order: Order
    number: int = 0


class Worker:
    """A worker at work. Raises what loading raises."""

    def __init__(self, work: Work) -> None:
        torch.set_num_threads(work.order.threads)
        recipe = replace(work.recipe, device=_device(work))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Note)  # the driver has said them
            self.chunks = Chunks(load(**recipe.arguments()), work.order)
        self.facts = with_hooks(facts(self.chunks.job, torch.get_num_threads()), self.chunks.model)

    def measured(
        self, pairs: Sequence[Pair], progress: Progress | None = None
    ) -> tuple[list[Row], Record, tuple[str, ...]]:
        """The rows of these pairs, what was recorded of them, and what was warned of."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", Note)
            rows, record = self.chunks.rows(pairs, progress)
        notes = (str(each.message) for each in caught if issubclass(each.category, EngineNote))
        return rows, record, tuple(dict.fromkeys(notes))


def expected(model: Model, spec: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """What every worker must say of itself: what the manifest says, and the hooks that the driver's model carries."""
    return with_hooks({name: spec[name] for name in FACTS} | {"threads": threads}, model)


def with_hooks(facts: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """The facts, and what hooks a model carries: workers know of none that were hung on after loading."""
    *_, hooks, replaced = model.circumstances
    return {**facts, "hooks": hooks, "replaced forwards": replaced}


def require_recipe(model: Model) -> Recipe:
    """How workers load the model. Raises InvalidOption for one that is in this process's memory alone."""
    if model.recipe is None:
        raise InvalidOption(
            f"workers= load the model anew, each in a process of its own, and {model.name} is in this one's memory "
            "alone. Save it (network.save_pretrained(folder), tokenizer.save_pretrained(folder)) and load(folder), or "
            "leave workers out."
        )
    return model.recipe


def require_sendable(options: RunOptions) -> None:
    """Raises InvalidOption for a metric whose function workers could not be sent."""
    for metric in listed(options.metric):
        try:
            pickle.dumps(metric)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InvalidOption(
                f"workers= are processes of their own, and the function of metric {name_of(metric)!r} cannot be sent "
                f"to them ({error}). Define it with def at the top of a module that they can import, or leave workers "
                "out."
            ) from None


def _device(work: Work) -> str | None:
    """Each worker its own GPU, as long as there are some and none was named."""
    count = torch.cuda.device_count()
    if work.recipe.device in (None, "auto", "cuda") and count > 1:
        return f"cuda:{work.number % count}"
    return work.recipe.device
