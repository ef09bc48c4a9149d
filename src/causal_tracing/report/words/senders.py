"""Paths from senders to receivers, in words: the strongest, and senders whose path to the logits a map would hide.

1. A path is told with what its sender does in all (the kind's margin), which no sum of paths need be.
2. Hidden is a sender whose path to the logits is worth a sentence, where its whole effect is less than half of that or
   goes the other way; beside it stand its largest paths of the other sign.
3. Of means over pairs each number has its interval, and p over the whole map: a path that this cannot tell from 0 is
   not called hidden.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from causal_tracing.report.labels import between, number, p_value
from causal_tracing.report.words.paths import LEAST, verb_of
from causal_tracing.results.means import MeanMap
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.rankings.score_files import ARROW
from causal_tracing.results.select import shown_first, strongest
from causal_tracing.results.site_kinds import PATHS, kind_of

TOLD, HIDDEN_TOLD, UNDOING, SIGNIFICANT = 5, 3, 3, 0.05
READ_SENDERS = (
    "A path: a sender is patched, and all that attention and MLPs add behind it, at its tokens, is held as in the "
    "unedited run; the final norm is live. What one receiver (a query, a key, a value, an MLP, the logits) makes of "
    "that stream is put into the unedited run, where all behind the receiver is live. Several receivers under one name "
    'follow the live rule: each also reads what the others make of it. A sender acts on its own tokens only. "Every '
    'path" is the sender patched as ever: what it does in all.'
)
READ_AS_A_WHOLE = (
    "Where a layer's heads are not told apart, attention or what mixes tokens in its place (a state space, a "
    "convolution, linear attention) sends and reads as a whole: its own token, and all before it."
)
NOT_SHOWN_SENDERS = (
    "Paths of one sender need not add up to what it does in all: what is held on one path would have answered, and "
    "reads what comes by the others.",
    "A path says what one reader reads of a sender, not what that means. Two paths that meet in a head or an MLP are "
    "measured one by one: no effect of a way through both.",
)
Told = Callable[[str, str], str]  # a sender and a receiver -> the path's number, as it is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """A sender that its whole effect hides: its path to the logits, and its largest paths of the other sign."""

    sender: str
    logits: str  # the receiver by name
    undone: tuple[str, ...]  # receivers


def sender_sentences(found: xr.Dataset) -> Iterator[str]:
    """One pair's strongest paths, and its hidden senders; nothing of a map of another kind."""
    if kind_of(found) != PATHS or np.isnan(found.total_effect.item()):
        return
    shown, unit = shown_first(found), str(found.unit.item())
    cells = found[shown].where(found.status == "ok").sel(component=PATHS.components[0])

    def told(sender: str, receiver: str) -> str:
        return number(cells.sel(sender=sender, receiver=receiver).item())

    rows = strongest(found, TOLD)
    yield from _strongest([(str(row.part), str(row.position)) for row in rows], told, shown, unit)
    for each in hidden_senders(cells, found.total_effect.item())[:HIDDEN_TOLD]:
        yield _hidden("Hidden sender", each, told, shown, unit)


def mean_sender_sentences(means: MeanMap) -> Iterator[str]:
    """The same of the mean over pairs, with intervals and the tests over the whole map."""
    if means.kind != PATHS.name:
        return
    cells, shown = means.cells.sel(component=PATHS.components[0]), means.shown
    effect = cells[shown].where(cells.status == "ok")

    def told(sender: str, receiver: str) -> str:
        cell = cells.sel(sender=sender, receiver=receiver)
        p = float(cell[f"{shown}_p_adjusted"])
        test = "" if np.isnan(p) else f" p {p_value(p)}"
        return number(float(cell[shown])) + between(float(cell[f"{shown}_low"]), float(cell[f"{shown}_high"])) + test

    paths = effect.where(effect.receiver != PATHS.margin).stack(cell=("sender", "receiver")).dropna("cell")
    order = paths[np.argsort(-abs(paths.values), kind="stable")][:TOLD]
    yield from _strongest([(str(one), str(other)) for one, other in order.cell.values], told, shown, means.unit)
    chance = cells[f"{shown}_p_adjusted"] >= SIGNIFICANT
    hidden = hidden_senders(effect, float(means.total.estimate))
    known = [each for each in hidden if not chance.sel(sender=each.sender, receiver=each.logits).item()]
    for each in known[:HIDDEN_TOLD]:
        yield _hidden("Hidden sender, on average", each, told, shown, means.unit)


def hidden_senders(effect: xr.DataArray, total: float) -> list[Hidden]:
    """The hidden senders of a map of one effect over (sender, receiver), NaN where nothing is; the largest first.

    None where the logits are no receiver of their own.
    """
    paths = effect.sel(receiver=effect.receiver != PATHS.margin)
    logits = [str(name) for name in paths.receiver.values[paths.receiver_layer.values < 0]]  # they are of no layer
    if not logits:
        return []
    direct, whole = paths.sel(receiver=logits[0]), effect.sel(receiver=PATHS.margin)
    # Where the total effect is 0, a path of 0 would be large enough.
    hides = (abs(direct) >= LEAST * abs(total)) & (direct != 0) & (whole * np.sign(direct) < abs(direct) / 2)
    found = direct.sender.values[hides.values]
    order = found[np.argsort(-abs(direct.sel(sender=found).values), kind="stable")]
    return [Hidden(sender=str(name), logits=logits[0], undone=_against(paths, str(name), logits[0])) for name in order]


def senders_read(measurements: Measurements) -> tuple[str, ...]:
    """How a map of paths is read, where there is one."""
    if PATHS.name not in measurements.maps:
        return ()
    return READ_SENDERS, *read_as_a_whole(measurements.maps[PATHS.name].receiver.values)


def read_as_a_whole(names: Iterable[str]) -> tuple[str, ...]:
    """What is said of readers that are no heads' queries, keys and values, where some of these (or edges) are such."""
    whole = any(str(name).rpartition(ARROW)[2].startswith(("attn_out ", "mixer_out ")) for name in names)
    return (READ_AS_A_WHOLE,) if whole else ()


def senders_not_shown(measurements: Measurements) -> tuple[str, ...]:
    """What a map of paths does not show."""
    return NOT_SHOWN_SENDERS if PATHS.name in measurements.maps else ()


def _against(paths: xr.DataArray, sender: str, logits: str) -> tuple[str, ...]:
    """The receivers of a sender's largest paths of the other sign than that to the logits."""
    here = paths.sel(sender=sender)
    against = (here * np.sign(here.sel(receiver=logits).item())).fillna(0.0)
    order = np.argsort(against.values, kind="stable")[:UNDOING]
    return tuple(str(here.receiver.values[n]) for n in order if against.values[n] < 0)


def _strongest(paths: list[tuple[str, str]], told: Told, shown: str, unit: str) -> Iterator[str]:
    if paths:
        each = (f"{sender} → {receiver} {told(sender, receiver)}" for sender, receiver in paths)
        whole = (f"{sender} {told(sender, PATHS.margin)}" for sender in dict.fromkeys(sender for sender, _ in paths))
        yield (
            f"Strongest paths by {shown}, in {unit}: {'; '.join(each)}. What these senders do in all: "
            f"{'; '.join(whole)}."
        )


def _hidden(what: str, each: Hidden, told: Told, shown: str, unit: str) -> str:
    undone = ", ".join(f"to {receiver} ({told(each.sender, receiver)})" for receiver in each.undone)
    against = f"Its largest paths of the other sign go {undone}" if undone else "None of its paths has the other sign"
    return (
        f"{what}: {each.sender}; by its path to the {each.logits} it {verb_of(shown)} "
        f"{told(each.sender, each.logits)} {unit}, in all {told(each.sender, PATHS.margin)}. {against}."
    )
