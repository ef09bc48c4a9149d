"""What works through nnsight, decided by what comes back from there: the checks of `engine.checks`, as worlds.

Of a model whose weights are elsewhere nothing can be tried here. So every component is patched where the model is, on
a prompt of six tokens, and one whose check fails is refused by name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from causal_tracing.engine.checks.bounds import ONE_FORWARD, TWO_FORWARDS
from causal_tracing.engine.checks.findings import (
    LARGE,
    REAL_CHANGE,
    Finding,
    Law,
    bounded,
    parted,
    parting,
    write_all,
)
from causal_tracing.engine.nnsight import block
from causal_tracing.engine.nnsight.backend import NnsightBackend
from causal_tracing.engine.random_prompts import short_prompts
from causal_tracing.errors import UnsupportedModel
from causal_tracing.interventions.edits import Edit, From, Given, Run, World
from causal_tracing.interventions.sites import RESIDUAL, Site
from causal_tracing.models.calling import words_of

WORDS = 64  # whose logits are compared, at each token
SEED = 0


def checked(backend: NnsightBackend) -> NnsightBackend:
    """The backend without the components whose checks fail. Raises UnsupportedModel where nothing can be trusted."""
    model, anatomy = backend.model, backend.model.anatomy
    for finding in (each for each in findings(backend) if not each.holds):
        measured = f"({finding.name}: measured {finding.difference:.2g}, bound {finding.bound:.2g})"
        if finding.name == Law.WHOLE_LAYER:
            anatomy = replace(anatomy, cut=False)
            continue
        if finding.name == Law.CAUSAL or finding.components in ((), ("resid_post",)):
            raise UnsupportedModel(f"{model.name} cannot be traced through nnsight {measured}.")
        for component in finding.components:
            if component in (*anatomy.components, *anatomy.mediators):
                anatomy = anatomy.refuse(component, f"its check through nnsight failed {measured}.")
    return NnsightBackend(replace(model, anatomy=anatomy), backend.transport, backend.known)


def findings(backend: NnsightBackend) -> Iterator[Finding]:
    """The checks, each with what was measured, in shares of the largest logit."""
    checks = _Checks(backend)
    yield checks.in_a_batch()
    yield checks.later_tokens()
    for component in (*backend.model.anatomy.components, *backend.model.anatomy.mediators):
        yield checks.own_activations(component)
        yield from checks.random_write(component)
    for component in (name for name in backend.model.anatomy.components if name in RESIDUAL):
        yield checks.whole_layer(component)


@dataclass(frozen=True, slots=True, eq=False)
class _Picked:
    """A `Portable` measure: some words' logits at every token."""

    words: Tensor
    function = staticmethod(block.picked)

    def __call__(self, logits: Tensor, worlds: Sequence[World]) -> Tensor:
        return self.function(logits, *self.data(worlds))

    def data(self, worlds: Sequence[World]) -> tuple[Tensor, ...]:
        return (self.words,)


class _Checks:
    def __init__(self, backend: NnsightBackend) -> None:
        self.backend, model = backend, backend.model
        self.model, self.bound = model, TWO_FORWARDS[backend.known.dtype]
        self.clean, self.corrupt = short_prompts(model.network, model.tokenizer)
        known = min(words_of(model.network.get_input_embeddings()) or 0, len(model.tokenizer))
        # Some words of each token: all logits of each check would be sent back.
        self.measure = _Picked(torch.arange(0, known, max(1, known // WORDS)))
        self.alone = self.numbers([()])[0]
        self.size = self.alone.abs().max().item()

    def numbers(self, edited: Sequence[tuple[Edit, ...]], base: Run | None = None) -> Tensor:
        """What is measured of the run with these edits, all in one batch: [edited, token, word]."""
        base = base or self.clean
        worlds = [World(base, edits, tuple(range(len(base.tokens)))) for edits in edited]
        values = torch.from_numpy(self.backend.evaluate(worlds, self.measure, prune=False).values)
        return values.unflatten(1, (len(base.tokens), -1))

    def apart(self, one: Tensor, other: Tensor) -> float:
        """How far they are apart, in shares of the largest number."""
        return (one - other).abs().max().item() / self.size

    def in_a_batch(self) -> Finding:
        """A run beside a longer one, behind which its own row is filled up."""
        # A longer donor makes every row be filled up, as it will be where donors have other lengths.
        longer = Run((*self.corrupt.tokens, *self.clean.tokens))
        last = self.model.active[-1], len(self.clean.tokens) - 1
        beside = (Edit(Site("resid_post", *last), From(longer, 0)),)
        apart = self.apart(self.numbers([(), beside])[0], self.alone)
        return bounded("a run alone = the run in a batch", (), apart, self.bound)

    def later_tokens(self) -> Finding:
        """Wherever another text goes on from some token, everything before it predicts what it did."""
        everywhere = tuple(range(len(self.clean.tokens)))
        worlds = [World(run, (), everywhere) for run in parting(self.clean, self.corrupt)]
        values = torch.from_numpy(self.backend.evaluate(worlds, self.measure, prune=False).values)
        change = parted(values.unflatten(1, (len(everywhere), -1))).max().item()
        return bounded(Law.LATER, (), change / self.size, self.bound)

    def own_activations(self, component: str) -> Finding:
        """What is read at every token of every layer is what is there."""
        # Both in one batch, whose shape decides the last bits.
        itself, twin = self.numbers([(), write_all(self.model, component, self.clean)])
        return bounded("its own activations change nothing", (component,), self.apart(itself, twin), self.bound)

    def random_write(self, component: str) -> Iterator[Finding]:
        """The positive control: a large write in the middle changes the logits there, and not before."""
        layers, position = self.model.having(component), len(self.clean.tokens) // 2
        layer = layers[len(layers) // 2]
        places = [(component, layer), ("resid_post", layer)]
        seen = self.backend.record([self.clean], places)[self.clean].activations
        noise = torch.randn(seen[component, layer].shape[-1], generator=torch.Generator().manual_seed(SEED))
        site, large = Site(component, layer, position), noise * seen["resid_post", layer].float().abs().max()
        itself, written = self.numbers([(), (Edit(site, Given(large * LARGE[0])),)])
        for times in LARGE[1:]:  # half floats overflow
            if written.isnan().any():
                itself, written = self.numbers([(), (Edit(site, Given(large * times)),)])
        change = (written - itself).abs().amax(-1) / self.size
        yield bounded(Law.CAUSAL, (component,), change[:position].max().item(), ONE_FORWARD[self.backend.known.dtype])
        name = "a large random write changes the logits"
        yield Finding(
            name=name, components=(component,), difference=change[position].item(), bound=REAL_CHANGE, at_least=True
        )

    def whole_layer(self, component: str) -> Finding:
        """The donor's activations at every token of a layer give the donor's logits."""
        donor = self.numbers([()], self.corrupt)[0]
        whole = self.numbers([write_all(self.model, component, self.corrupt, layer) for layer in self.model.active])
        return bounded(Law.WHOLE_LAYER, (component,), max(self.apart(each, donor) for each in whole), self.bound)
