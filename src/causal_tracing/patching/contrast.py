"""The runs that a pair compares, a clean one and corrupt ones, and what one of them gives to the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from causal_tracing.interventions.edits import Edit, From, Run
from causal_tracing.interventions.sites import Site
from causal_tracing.interventions.write import Write
from causal_tracing.patching.ablation import written
from causal_tracing.patching.named_sites import NamedSite
from causal_tracing.prompts.alignment import Slot
from causal_tracing.prompts.pairs import TokenPair


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contrast:
    """A pair's clean run, and its corrupt runs: one, one a draw where noise corrupts, or none (`TokenPair.alone`).

    `write` is what patched sites get, and `reference` the runs that it is read from where it is not the other run.
    `donors` are the clean run and the corrupt one that activations are read from, where what is compared is edited
    itself: `given` sites hold the other run's there, in the base runs and so in every cell.
    """

    clean: Run
    corrupt: tuple[Run, ...]
    write: Write = field(default_factory=Write)
    reference: tuple[Run, ...] = ()
    donors: tuple[Run, Run] | None = None

    @property
    def draws(self) -> int:
        """How many worlds measure one cell, whose mean it is."""
        return len(self.reference) if self.write.kind == "resample" else max(1, len(self.corrupt))

    def sides(self, draw: int, *, restores: bool) -> tuple[Run, Run]:
        """The base run and the donor of one draw."""
        # Where donors are drawn there are several draws, and one corrupt run.
        corrupt = self.corrupt[draw if len(self.corrupt) > 1 else 0] if self.corrupt else self.clean
        if self.donors:
            return (corrupt, self.donors[0]) if restores else (self.clean, self.donors[1])
        if restores:
            return corrupt, self.clean
        return self.clean, self.reference[draw] if self.write.kind == "resample" else corrupt

    def edit(
        self, component: str, layer: int, slot: Slot, donor: Run, *, restores: bool, part: int | None = None
    ) -> Edit:
        """What is written at a slot of the base run."""
        here, there = (slot.corrupt, slot.clean) if restores else slot
        if self.write.kind == "resample":  # its donors stand in for the clean prompt, token by token
            there = here
        site = Site(component, layer, here, part)
        return Edit(site, written(self.write, site, From(donor, there), self.reference), float(self.write.alpha))


def in_edited_world(contrast: Contrast, pair: TokenPair, given: Sequence[NamedSite]) -> Contrast:
    """The same contrast where these sites hold the other run's activations already, in both runs."""
    clean, corrupt = contrast.clean, contrast.corrupt[0]  # the only one: given sites do not go with noise
    # What is given is the other run's, whole; the write is of what is swept over it.
    whole = replace(contrast, write=Write())
    restored = tuple(edit for site in given for edit in site.edits(pair, whole, clean, restores=True))
    disrupted = tuple(edit for site in given for edit in site.edits(pair, whole, corrupt, restores=False))
    return replace(
        contrast,
        clean=Run(clean.tokens, disrupted),
        corrupt=(Run(corrupt.tokens, restored),),
        donors=(clean, corrupt),
    )


def of_clean(pair: TokenPair) -> Run:
    """The run of the clean prompt."""
    return Run(pair.clean.tokens)


def of_prompts(pair: TokenPair) -> Contrast:
    """The runs of the pair's own prompts."""
    return Contrast(clean=of_clean(pair), corrupt=() if pair.alone else (Run(pair.corrupt.tokens),))
