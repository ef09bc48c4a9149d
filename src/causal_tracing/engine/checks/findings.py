"""Checks of patching on one model: what each measured, and the bound that it was held against."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from causal_tracing.engine.backend import Recording
from causal_tracing.engine.checks.agreement import SEED
from causal_tracing.engine.checks.bounds import ONE_FORWARD, TWO_FORWARDS
from causal_tracing.engine.checks.logits import apart, largest
from causal_tracing.engine.hooks.forward import forward
from causal_tracing.engine.hooks.record import donor_recordings
from causal_tracing.interventions.edits import Edit, From, Given, Run
from causal_tracing.interventions.sites import Site
from causal_tracing.models.model import Model

CROWD = 15  # rows beside a run, where it is seen whether there are too many
REAL_CHANGE = 1e-3  # a large random write must move the logits by this share of their size
HUGE = 3.0  # times the largest norm of a token: nearly all of what a norm behind it gives
REPEATS, ROOM = 8, 4  # of a forward, where kernels add in no fixed order; times the largest difference among them
LARGE = (3.0, 0.3, 0.03)  # times the largest number of the stream; the first by which half floats do not overflow


class Law(StrEnum):
    """Checks whose failure means more than that a component is refused (`check.py`)."""

    AGAIN = "a run = the same run again"
    ALONE = "a run alone = the run in a batch"
    BESIDE = "a run alone = the run beside others"
    CAUSAL = "nothing before an edit changes"
    LATER = "later tokens change no earlier logits"
    LAST_LAYER = "the last layer's output gives the donor's logits"
    ANYWHERE = "a last state gives its own logits at another place"
    WHOLE_LAYER = "a whole layer gives the donor's logits"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: the difference that was measured, the bound that it was held against, and whether it held.

    It speaks for these components, of the model itself where there are none. `at_least`: the bound is a lower one.
    """

    name: str
    components: tuple[str, ...]
    difference: float
    bound: float
    at_least: bool = False

    @property
    def component(self) -> str:
        """The components, for people."""
        return ", ".join(self.components)

    @property
    def holds(self) -> bool:
        """Whether the difference keeps to its bound; what is not a number does not."""
        return self.difference >= self.bound if self.at_least else self.difference <= self.bound

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in ("name", "component", "difference", "bound", "holds")}


def bounded(name: str, components: tuple[str, ...], difference: float, bound: float) -> Finding:
    """A check that holds up to its bound."""
    return Finding(name=name, components=components, difference=difference, bound=bound)


def write_all(model: Model, component: str, donor: Run, layer: int | None = None) -> tuple[Edit, ...]:
    """The donor's activations at every position of one layer, or of all."""
    layers = model.having(component) if layer is None else [layer]
    positions = range(len(donor.tokens))
    return tuple(Edit(Site(component, one, p), From(donor, p)) for one in layers for p in positions)


def own_activations(model: Model, component: str, run: Run, donors: Mapping[Run, Recording]) -> Finding:
    """A run's own activations, at every position of every layer, change nothing: to the bit.

    One run at a time, as recorded: batches of other sizes differ in the last bits. Where the device does not repeat a
    forward to the bit, they change no more than a few times what repeats do.
    """
    itself = Run(run.tokens, write_all(model, component, run))
    logits, _ = forward(model, [itself], donors, keep=len(run.tokens))
    change = apart(logits[0], donors[run].logits).max().item() / largest(donors[run].logits)
    # Repeats are run only where something changed: most devices repeat a forward to the bit.
    bound = 0.0 if change == 0 else _unrepeated(model, component, run)
    return bounded("its own activations change nothing", (component,), change, bound)


def _unrepeated(model: Model, component: str, run: Run) -> float:
    """How far a forward may be from the same forward, where repeats are apart at all; never more than rounding."""
    places = [(component, layer) for layer in model.having(component)]
    found = [forward(model, [run], {}, keep=len(run.tokens), wanted=places)[0][0] for _ in range(REPEATS)]
    between = max(apart(one, other).max().item() for one, other in combinations(found, 2)) / largest(found[0])
    return min(ROOM * between, ONE_FORWARD[model.dtype])


def beside_others(model: Model, run: Run, other: Run, donors: Mapping[Run, Recording]) -> Finding:
    """A run gives what it gives alone, beside another text and beside itself with one huge number at one token.

    Few such numbers are what layers that quantise activations tell as outliers, some by all rows of a batch. And behind
    many rows of one token: experts that take so many tokens of a batch, and no more, drop what comes last.
    """
    component, layer = "resid_pre" if "resid_pre" in model.anatomy.components else "resid_post", model.active[0]
    stream = donors[run].activations[component, layer].float()
    huge = torch.zeros_like(stream[0])
    # In the dimension that is largest anyway: there a layer that quantises looks for outliers.
    huge[stream.abs().amax(0).argmax()] = HUGE * stream.norm(dim=-1).max()
    edited = Run(run.tokens, (Edit(Site(component, layer, len(run.tokens) // 2), Given(huge)),))
    # Copies of its last token alone go where that goes, all to the same experts, and leave no room there.
    crowd = Run(run.tokens[-1:] * len(run.tokens))
    batches = ([run, other, edited], [*[crowd] * CROWD, run])
    own = donors[run].logits
    found = [forward(model, batch, {}, keep=len(run.tokens))[0][batch.index(run)] for batch in batches]
    difference = max(apart(each, own).max().item() for each in found) / largest(own)
    return bounded(Law.BESIDE, (), difference, TWO_FORWARDS[model.dtype])


def later_tokens(model: Model, run: Run, other: Run) -> Finding:
    """Wherever another text goes on from some token, everything before it predicts what it did.

    At every token: some models see all of a prompt's beginning at once, or tokens in blocks, and look no further.
    """
    # All in one forward, so that rounding is the same.
    logits, _ = forward(model, parting(run, other), {}, keep=len(run.tokens))
    difference = parted(logits).max().item() / largest(logits[0])
    return bounded(Law.LATER, (), difference, TWO_FORWARDS[model.dtype])


def parting(run: Run, other: Run) -> list[Run]:
    """A run, and runs that go on from its first token, its second, ... as another one does."""
    tokens = run.tokens
    return [run, *(Run((*tokens[:turn], *other.tokens[turn:])) for turn in range(1, len(tokens)))]


def parted(logits: Float[Tensor, "run token vocab"]) -> Float[Tensor, " run-1"]:
    """By how much each of these runs differs from the first one where both have the same tokens so far."""
    return torch.stack([apart(row[:turn], logits[0, :turn]).max() for turn, row in enumerate(logits[1:], 1)])


def last_state(model: Model, run: Run) -> Finding:
    """The last state of the run without its last token gives the same logits in the place of that one."""
    shorter, last = Run(run.tokens[:-1]), len(run.tokens) - 1
    edit = Edit(Site("resid_post", model.active[-1], last), From(shorter, last - 1))
    donors = donor_recordings(model, [moved := Run(run.tokens, (edit,))])
    own, found = donors[shorter].logits[-1], forward(model, [moved], donors, keep=1)[0][0, -1]
    return bounded(Law.ANYWHERE, ("resid_post",), apart(found, own).item() / largest(own), TWO_FORWARDS[model.dtype])


def random_write(model: Model, component: str, run: Run, recording: Recording) -> Iterator[Finding]:
    """The positive control: a large write in the middle changes the logits there, and not before.

    What goes into layers is written before the first one, so that all of them are asked whether they look ahead. Where
    nothing reads what is written (a matrix of zeros), other layers are asked too.
    """
    layers, position = model.having(component), len(run.tokens) // 2
    first = layers[0 if component == "resid_pre" else len(layers) // 2]
    change = _change(model, component, first, run, recording)
    others = (layer for layer in layers if layer != first)
    while change[position] < REAL_CHANGE and (layer := next(others, None)) is not None:
        change = _change(model, component, layer, run, recording)
    yield bounded(Law.CAUSAL, (component,), change[:position].max().item(), ONE_FORWARD[model.dtype])
    yield Finding(
        name="a large random write changes the logits",
        components=(component,),
        difference=change[position].item(),
        bound=REAL_CHANGE,
        at_least=True,
    )


def _change(model: Model, component: str, layer: int, run: Run, recording: Recording) -> Float[Tensor, " token"]:
    """What a large random write in the middle of a run changes at each token, in shares of the largest logit."""
    position = len(run.tokens) // 2
    stream = recording.activations["resid_post", layer]  # a component may be silent; the stream is not
    width = recording.activations[component, layer].shape[-1]
    noise = torch.randn(width, generator=torch.Generator().manual_seed(SEED), dtype=torch.float32)

    def written(times: float) -> Tensor:
        given = Given(noise.to(stream.device) * stream.float().abs().max() * times)
        edited = Run(run.tokens, (Edit(Site(component, layer, position), given),))
        return forward(model, [run, edited], {}, keep=len(run.tokens))[0]

    logits = written(LARGE[0])
    for times in LARGE[1:]:
        logits = written(times) if logits.isnan().any() else logits
    # Both rows are of one forward, so that rounding is the same on both sides.
    return apart(logits[1], logits[0]) / largest(logits[0])
