"""Numbers to effects: the definitions, in one place. Positive always means: supports the clean behaviour.

Y(a, m) is the metric when the input is clean (1) or corrupt (0) and the component has its clean or corrupt value
(Vig et al. 2020; Pearl 2001; Robins & Greenland 1992; the names of ROME and others: `VOCABULARIES`).
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidOption
from causal_tracing.results.arms import DIRECT_ARMS, DIRECTIONS, MEMBERS, SEVERED, SUMS, Arm
from causal_tracing.results.measurements import Measurements
from causal_tracing.results.site_kinds import KINDS
from causal_tracing.results.units import NEED_FOIL

# Arrays whose axes have names and no labels: of one dataset, whose labels are the same, they need not be compared each
# time that two of them are added up, which took twenty times as long.
Unlabelled = Mapping[Hashable, xr.Variable]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """An effect: which measured numbers it needs beside the unedited runs', and its formula.

    A fraction is another effect's share of the total effect (`fraction_of`). `averaged`: it has a mean over pairs with
    tests of its own; `switched`: a page offers it. `of_ends`: of kinds alone whose first cell is nothing and whose last
    is everything (`SiteKind.ends`); a fraction of such an effect is its share of what everything has.
    """

    name: str
    needs: tuple[str, ...] = ()
    formula: Callable[[Unlabelled], xr.Variable] | None = None
    fraction_of: str | None = None
    averaged: bool = False
    switched: bool = False
    of_ends: bool = False


def _of_arm(arm: Arm, *, averaged: bool = False) -> Effect:
    """What an arm brings back, or what it loses."""

    def formula(numbers: Unlabelled) -> xr.Variable:
        return numbers[arm.raw] - numbers["corrupt"] if arm.restores else numbers["clean"] - numbers[arm.raw]

    return Effect(name=arm.name, needs=(arm.raw,), formula=formula, averaged=averaged, switched=True)


def _beyond_sum(arm: Arm) -> Effect:
    """What sites do together beyond what each does alone: e(AB) − e(A) − e(B) of two."""
    alone = MEMBERS[arm.name]

    def formula(numbers: Unlabelled) -> xr.Variable:
        beyond = numbers[arm.raw] - numbers[alone.raw]
        return beyond if arm.restores else -beyond

    name = f"{arm.name}_beyond_sum"
    return Effect(name=name, needs=(arm.raw, alone.raw), formula=formula, averaged=True, switched=True)


def _beyond_empty(arm: Arm) -> Effect:
    """What a set of nodes has beyond the empty one: m(C) − m(empty)."""

    def formula(numbers: Unlabelled) -> xr.Variable:
        return numbers[arm.raw] - numbers[arm.raw].isel(size=0)

    return Effect(name=f"{arm.name}_beyond_empty", needs=(arm.raw,), formula=formula, averaged=True, of_ends=True)


def _interaction(numbers: Unlabelled) -> xr.Variable:
    return (numbers["clean"] - numbers["disrupted"]) - (numbers["restored"] - numbers["corrupt"])


DEFINITIONS = (
    *(_of_arm(arm, averaged=True) for arm in DIRECTIONS.values()),
    Effect(name="interaction", needs=("restored", "disrupted"), formula=_interaction, averaged=True, switched=True),
    Effect(name="bypass", needs=("disrupted",), formula=lambda numbers: numbers["disrupted"] - numbers["corrupt"]),
    Effect(
        name="bypass_given_restored",
        needs=("restored",),
        formula=lambda numbers: numbers["clean"] - numbers["restored"],
    ),
    Effect(name="restored_fraction", fraction_of="restoration"),
    Effect(name="lost_fraction", fraction_of="disruption"),
    *(_of_arm(arm) for arm in (*SUMS.values(), *MEMBERS.values(), *SEVERED.values())),
    *(_beyond_sum(arm) for arm in DIRECTIONS.values()),
    *(_of_arm(arm, averaged=True) for arm in DIRECT_ARMS.values()),
    *(_beyond_empty(arm) for arm in DIRECTIONS.values()),
    Effect(name="faithfulness", fraction_of="disruption_beyond_empty", of_ends=True),
    Effect(name="faithfulness_restored", fraction_of="restoration_beyond_empty", of_ends=True),
    Effect(name="estimated", needs=("estimated",), formula=lambda numbers: numbers["estimated"], averaged=True),
)
EFFECTS = tuple(effect.name for effect in DEFINITIONS)
AVERAGED = tuple(effect.name for effect in DEFINITIONS if effect.averaged)
FRACTIONS = {effect.name: effect.fraction_of for effect in DEFINITIONS if effect.fraction_of}
OF_ENDS = frozenset(effect.name for effect in DEFINITIONS if effect.of_ends)
NO_TOTAL = "there is no corrupt prompt, and so no total effect that it could be a share of"
DAMAGE = ("logit_diff", "log_prob", "entropy")  # by which a patch is seen to break something
OF_TOKENS = ("clean_token", "corrupt_token", "clean_role", "corrupt_role")
WINDOW = ("window_first", "window_last")  # the layers that a cell patches together

# What others call the same numbers. Labels only: the numbers never change.
VOCABULARIES: dict[str, dict[str, str]] = {
    "how-to": {"restoration": "direct effect (restoration)", "disruption": "indirect effect (corruption)"},
    "rome": {"total_effect": "TE", "restoration": "indirect effect (IE)", "bypass": "direct effect (footnote 5)"},
    "pearl": {
        "total_effect": "TE",
        "restoration": "pure natural indirect effect",
        "disruption": "total natural indirect effect",
        "bypass": "pure natural direct effect",
        "bypass_given_restored": "total natural direct effect",
        "interaction": "mediated interaction",
    },
}

AMBIGUOUS = """"direct" and "indirect" mean different things in the literature. Ask by these names:
  name here              formula                     how-to page  ROME        Pearl / Robins-Greenland
  restoration            Y(0,M1) - Y(0,M0)           "direct"     "indirect"  pure natural indirect effect
  disruption             Y(1,M1) - Y(1,M0)           "indirect"   -           total natural indirect effect
  bypass                 total effect - disruption   -            "direct"    pure natural direct effect
  bypass_given_restored  total effect - restoration  -            -           total natural direct effect
A path is something else again (trace(..., direct=True)): what reaches the logits from a patched site while all later
attention at the token that is read is held as in the unedited run, and with it the later MLPs, or not:
  direct_path_restoration            direct_path_disruption              attention and MLPs held: the stream alone
  direct_path_mlps_live_restoration  direct_path_mlps_live_disruption    attention held, MLPs live"""

# A fraction is undefined where the total effect is so small that the spread alone could move it by this much.
FRACTION_PRECISION = 0.01
STATUSES = ("ok", "structural_zero", "cut", "undefined", "unpaired", "no_window", "failed", "not_patched", "given")

NO_FOIL, NEEDS_FOIL = "the pair has no foil", "it needs a foil"  # said of a pair, and of a metric
NOT_FINITE = "an unedited run's logits are not finite"
MASKED = "the model masks the answer or the foil: its logit is −inf, or such as −1e9"
OF_LOGITS = ("logit_diff", "log_prob", "logit")  # which say nothing of a word that is masked


def effects(measurements: Measurements, of: str | None = None, *, metrics: Sequence[str] | None = None) -> xr.Dataset:
    """Every effect that follows from the directions measured, in the metric's unit, with a status for each cell.

    `of` is the kind of site (default: the trace's first), over (metric, pair, and the kind's axes); `metrics` are those
    that are wanted (default: all), which of large maps saves seconds.

    NaN where undefined: `status` says so for the cell, `reason` for a metric and pair as a whole, `fraction_reason`
    where only the fractions are undefined (a total effect too small to divide by). `damage_like` marks cells where
    logit_diff rises while log_prob of the answer does not and the entropy does: the patch broke something.
    """
    of = measurements.kind(of)
    everything = measurements.numbers(of)
    data = everything if metrics is None else everything.sel(metric=_measured(everything, metrics, of))
    numbers = data.variables
    # More of it is neither cleaner nor less clean: a difference of entropies would be read as an effect.
    not_entropy = numbers["metric"] != "entropy"
    scored = {name: numbers[name].where(not_entropy) for name in data.data_vars if "metric" in numbers[name].dims}
    total = scored["clean"] - scored["corrupt"]
    # The total effect is a difference of two runs, each with this spread: √2 of it, over the precision that is wanted.
    threshold = numbers["spread"] * np.sqrt(2) / FRACTION_PRECISION
    uncertain = _half_interval(numbers, measurements.provenance)
    divisor = total.where((abs(total) > threshold) & (abs(total) > uncertain))
    found = {"clean": numbers["clean"], "corrupt": numbers["corrupt"], "total_effect": total}
    found |= _differences(scored, ends=KINDS[of].ends)
    alone = numbers["corrupt_prompt"] == ""
    there = scored["clean"].where(alone, total).notnull()  # the pair has effects by this metric
    for fraction, effect in FRACTIONS.items():
        if effect in found:
            whole = whole_of(found[effect]) if effect in OF_ENDS else divisor
            found[fraction] = found[effect] / whole.where(abs(whole) > threshold)
    # Of all metrics, also where few are asked for: damage is told by three of them together.
    if "restored" in data and {*DAMAGE} <= {*everything.metric.values.tolist()}:
        found["damage_like"] = _damage_like(everything)
    found |= {name: numbers[name] for name in ("top", "sampled") if name in data}
    found["status"] = _status(numbers, found, there)
    found["reason"] = _reason(data, there, everything)
    why: Any = _fraction_reason(total, threshold, uncertain)
    found["fraction_reason"] = why.where(~(there & alone), NO_TOTAL)
    return _labelled(found, data, measurements, of)


def _labelled(found: Unlabelled, data: xr.Dataset, measurements: Measurements, of: str) -> xr.Dataset:
    """The effects with the labels of their axes, of tokens and of windows, and with what was written."""
    kind, alpha = measurements.write["kind"], measurements.write["alpha"]
    attrs = {"write": kind if alpha == 1 else f"{kind} {alpha:g}"}
    if {arm.name for arm in DIRECT_ARMS.values()} & {*found}:
        attrs["direct_norm"] = measurements.direct_norm
    numbers = data.variables
    axes = {"metric", "pair"} | {axis for each in found.values() for axis in each.dims}
    of_axes = {name: numbers[name] for name in data.coords if {*numbers[name].dims} <= axes}
    labels = (*WINDOW, *OF_TOKENS, "readers", "site_layer", "partner_layer")
    of_sites = {name: _by_clean_token(numbers, name) for name in labels if name in data}
    # All at once, with the indexes that are there: to merge and align them takes longer than the arithmetic.
    indexes = {name: each for name, each in data.xindexes.items() if name in of_axes}
    coordinates = xr.Coordinates(of_axes | of_sites | {"kind": xr.Variable((), of)}, indexes)
    return xr.Dataset(found, coordinates, attrs)


def without_corrupt(pairs: xr.Dataset) -> xr.DataArray:
    """Which pairs have a clean prompt alone."""
    return pairs.corrupt_prompt == ""


def _measured(data: xr.Dataset, metrics: Sequence[str], of: str) -> list[str]:
    """The metrics that are wanted. Raises InvalidOption where this kind was not measured by one of them."""
    there = [str(name) for name in data.metric.values]
    for name in metrics:
        if name not in there:
            raise InvalidOption(
                f"The {of} of this trace were measured by {', '.join(there)} alone. Trace them with metrics=[{name!r}]."
            )
    return [*metrics]


def _by_clean_token(numbers: Unlabelled, name: str) -> xr.Variable:
    """A label of tokens, in the order of the clean prompt's: of the corrupt prompt, those they are paired with."""
    label: Any = numbers[name]
    if not name.startswith("corrupt_") or "corrupt_position" not in numbers:
        return label
    at = numbers["corrupt_position"]
    return label.isel(token=at.clip(min=0)).where(at >= 0, "")


def whole_of(effect: xr.Variable) -> xr.Variable:
    """What everything has, of a kind whose last cell that is."""
    return effect.isel({effect.dims[-1]: -1})


def _differences(scored: Unlabelled, *, ends: bool) -> dict[Hashable, xr.Variable]:
    """Every effect that is a difference of two numbers that were measured, and the spread of those over draws."""
    found: dict[Hashable, xr.Variable] = {
        effect.name: effect.formula(scored)
        for effect in DEFINITIONS
        if effect.formula is not None and {*effect.needs} <= {*scored} and effect.of_ends <= ends
    }
    spreads = {"corrupt": "total_effect"} | {arm.raw: arm.name for arm in DIRECTIONS.values()}
    for raw, effect in spreads.items():  # the clean run is the same for every draw of noise
        if f"{raw}_deviation" in scored:
            found[f"{effect}_deviation"] = scored[f"{raw}_deviation"]
    return found


def require_effect(name: str, available: xr.Dataset) -> str:
    """The effect's name, if it is one that was measured. Raises InvalidOption, for "direct" with a table of names."""
    if name in available and name in EFFECTS:
        return name
    if "direct" in name.lower():
        raise InvalidOption(AMBIGUOUS)
    measured = ", ".join(effect for effect in EFFECTS if effect in available)
    raise InvalidOption(f"There is no effect {name!r} in this trace. It has: {measured}.")


def label(name: str, vocabulary: str | None = None) -> str:
    """An effect's name, with what another vocabulary calls it. Raises InvalidOption."""
    if vocabulary is None:
        return name.replace("_", " ")
    if vocabulary not in VOCABULARIES:
        raise InvalidOption(f"There is no vocabulary {vocabulary!r}. Valid: {', '.join(VOCABULARIES)}.")
    other = VOCABULARIES[vocabulary].get(name)
    return f"{name.replace('_', ' ')} ({other})" if other else name.replace("_", " ")


def _status(numbers: Unlabelled, found: Unlabelled, there: xr.Variable) -> xr.Variable:
    """Why a cell has a number or none: for each cell and metric one of `STATUSES`."""
    code = {name: number for number, name in enumerate(STATUSES)}  # texts of a million cells are made once, at the end
    measured = [found[name] for name in DIRECTIONS if name in found]
    missing = reduce(or_, (array.isnull() for array in measured))
    status: Any = xr.full_like(missing, code["ok"], dtype=np.int64)
    status = status.where(~missing, code["failed"])
    status = status.where(there, code["undefined"])
    # What comes later says more of a cell, and takes the place of what came before.
    for name in ("not_patched", "cut", "structural_zero"):
        if name in numbers:
            status = status.where(~numbers[name] | (status == code["undefined"]), code[name])
    status = status.where(~numbers["unpaired"], code["unpaired"])
    status = status.where(~numbers["given"], code["given"]) if "given" in numbers else status
    if "window_first" in numbers:
        status = status.where(numbers["window_first"] >= 0, code["no_window"])
    return xr.Variable(status.dims, np.array(STATUSES, dtype=object)[status.values])


def _reason(data: xr.Dataset, there: xr.Variable, everything: xr.Dataset) -> xr.Variable:
    """Why a metric has no effects for a pair; empty where it has. A mask is told by all metrics that were measured."""
    reasons = xr.full_like(there, "", dtype=object)
    lacks = data.lacks.transpose("metric", "pair").values if "lacks" in data else np.full(there.shape, "", object)
    foils, lengths = data.foil.values, data.answer_length.values
    ends = everything.clean.where(without_corrupt(everything), everything.clean + everything.corrupt)
    finite = np.isfinite(ends.transpose("metric", "pair").values).any(0)  # by pair
    for index in np.ndindex(*there.shape):
        metric, pair = data.metric.values[index[0]], index[1]
        if metric == "entropy":
            reasons.values[index] = "entropy is shown raw: more of it is neither cleaner nor less clean"
        elif lacks[index]:
            reasons.values[index] = NO_FOIL if lacks[index] == NEEDS_FOIL else lacks[index]
        elif metric in NEED_FOIL and not foils[pair]:
            reasons.values[index] = NO_FOIL
        elif metric in ("logit", "neg_rank") and lengths[pair] > 1:
            single = "logit" if metric == "logit" else "rank"
            reasons.values[index] = f"an answer of several tokens has no single {single}"
        elif not there.values[index]:
            masks = metric in OF_LOGITS and finite[pair]
            reasons.values[index] = MASKED if masks else NOT_FINITE
    return reasons


def _half_interval(numbers: Unlabelled, provenance: Mapping[str, Any]) -> xr.Variable:
    """Half of the total effect's 95 % interval over draws of noise (Student's t); 0 where nothing was drawn."""
    if "corrupt_deviation" not in numbers:
        return xr.zeros_like(numbers["clean"])
    from scipy import stats

    draws = provenance["noise"]["draws"]
    return numbers["corrupt_deviation"] / draws**0.5 * float(stats.t.ppf(0.975, draws - 1))


def _fraction_reason(total: xr.Variable, threshold: xr.Variable, uncertain: xr.Variable) -> xr.Variable:
    reasons = xr.full_like(total, "", dtype=object)
    for index in np.ndindex(*total.shape):
        effect, bound, half = (array.values[index] for array in (total, threshold, uncertain))
        if effect == 0:
            reasons.values[index] = "the total effect is 0, and nothing is a share of that"
        elif abs(effect) <= bound:
            reasons.values[index] = (
                f"the total effect ({abs(effect):.2g}) is not larger than {bound:.2g}: repeats of the unedited runs "
                "differ so much that a fraction would be off by more than 0.01"
            )
        elif abs(effect) <= half:
            reasons.values[index] = (
                f"the total effect's 95 % interval over draws ({effect:.2g} ± {half:.2g}) contains 0: use more draws "
                "or stronger noise"
            )
    return reasons


def _damage_like(data: xr.Dataset) -> xr.Variable:
    at, numbers = {name: list(data.metric.values).index(name) for name in DAMAGE}, data.variables
    by = {name: numbers["restored"].isel(metric=n) - numbers["corrupt"].isel(metric=n) for name, n in at.items()}
    return (by["logit_diff"] > 0) & (by["log_prob"] <= 0) & (by["entropy"] > 0)
