"""Numbers to effects: the definitions, in one place. Positive always means: supports the clean behaviour.

Y(a, m) is the metric when the input is clean (1) or corrupt (0) and the component has its clean or corrupt value
(Vig et al. 2020; Pearl 2001; Robins & Greenland 1992; the names of ROME and others: `VOCABULARIES`).
"""

import numpy as np
import xarray as xr

from causal_tracing.errors import InvalidOption
from causal_tracing.results import Measurements

EFFECTS = (
    "restoration",
    "disruption",
    "interaction",
    "bypass",
    "bypass_given_restored",
    "restored_fraction",
    "lost_fraction",
    "restoration_sum",
    "disruption_sum",
    "severed_attn_out",
    "severed_mlp_out",
)

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
  bypass_given_restored  total effect - restoration  -            -           total natural direct effect"""

# A fraction is undefined where the total effect is so small that the spread alone could move it by this much.
FRACTION_PRECISION = 0.01


def effects(measurements: Measurements, of: str = "blocks") -> xr.Dataset:
    """Every effect that follows from the directions measured, in the metric's unit, with a status for each cell.

    `of` is "blocks", "heads" or "neurons".

    NaN where undefined: `status` says so for the cell, `reason` for a metric and pair as a whole, `fraction_reason`
    where only the fractions are undefined (a total effect too small to divide by). `damage_like` marks cells where
    logit_diff rises while log_prob of the answer does not and the entropy does: the patch broke something.
    """
    data = measurements.table(of)
    raw_only = data.metric == "entropy"
    total = (data.clean - data.corrupt).where(~raw_only)
    found = xr.Dataset({"clean": data.clean, "corrupt": data.corrupt, "total_effect": total})
    threshold = data.spread * np.sqrt(2) / FRACTION_PRECISION
    uncertain = _half_interval(measurements)
    divisor = total.where((abs(total) > threshold) & (abs(total) > uncertain))
    if "restored" in data:
        found["restoration"] = (data.restored - data.corrupt).where(~raw_only)
        found["bypass_given_restored"] = (data.clean - data.restored).where(~raw_only)
        found["restored_fraction"] = found.restoration / divisor
        found["damage_like"] = _damage_like(data)
    if "disrupted" in data:
        found["disruption"] = (data.clean - data.disrupted).where(~raw_only)
        found["bypass"] = (data.disrupted - data.corrupt).where(~raw_only)
        found["lost_fraction"] = found.disruption / divisor
    for part in ("attn_out", "mlp_out"):
        if f"restored_severed_{part}" in data:
            found[f"severed_{part}"] = (data[f"restored_severed_{part}"] - data.corrupt).where(~raw_only)
    if "restored_sum" in data:
        found["restoration_sum"] = (data.restored_sum - data.corrupt).where(~raw_only)
    if "disrupted_sum" in data:
        found["disruption_sum"] = (data.clean - data.disrupted_sum).where(~raw_only)
    if "corrupt_deviation" in data:  # the clean run is the same for every draw of noise
        found["total_effect_deviation"] = data.corrupt_deviation.where(~raw_only)
    for direction, raw in (("restoration", "restored"), ("disruption", "disrupted")):
        if f"{raw}_deviation" in data:
            found[f"{direction}_deviation"] = data[f"{raw}_deviation"].where(~raw_only)
    for name in ("window_first", "window_last"):
        if name in data:
            found[name] = data[name]
    if {"restored", "disrupted"} <= set(data):
        found["interaction"] = found.disruption - found.restoration
    found["status"] = _status(data, found)
    found["reason"] = _reason(data, total)
    found["fraction_reason"] = _fraction_reason(total, threshold, uncertain)
    found.attrs["write"] = _written(measurements)
    labels = ("clean_token", "corrupt_token", "clean_role", "corrupt_role", "readers")
    return found.assign_coords({name: data[name] for name in labels if name in data})


def _written(measurements: Measurements) -> str:
    """What sites get: "donor" is the other run's activation, whole; only that gives both directions a joint meaning."""
    write = measurements.provenance.get("options", {}).get("write", {"kind": "donor", "alpha": 1})
    return write["kind"] if write["alpha"] == 1 else f"{write['kind']} {write['alpha']:g}"


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


def _status(data: xr.Dataset, found: xr.Dataset) -> xr.DataArray:
    """ok, structural_zero, cut, undefined, unpaired, no_window or failed, for each cell and metric."""
    measured = [found[name] for name in ("restoration", "disruption") if name in found]
    missing = sum((array.isnull() for array in measured[1:]), start=measured[0].isnull()) > 0
    status = xr.full_like(missing, "ok", dtype=object)
    status = status.where(~missing, "failed")
    status = status.where(~found.total_effect.isnull(), "undefined")
    for name in ("cut", "structural_zero", "unpaired"):
        status = status.where(~data[name] | (status == "undefined"), name)
    status = status.where(~data.unpaired, "unpaired")
    return status.where(data.window_first >= 0, "no_window") if "window_first" in data else status


def _reason(data: xr.Dataset, total: xr.DataArray) -> xr.DataArray:
    """Why a metric has no effects for a pair; empty where it has."""
    reasons = xr.full_like(total, "", dtype=object)
    for metric in data.metric.values:
        for pair in data.pair.values:
            at = {"metric": metric, "pair": pair}
            if metric == "entropy":
                reasons.loc[at] = "entropy is shown raw: more of it is neither cleaner nor less clean"
            elif metric == "logit_diff" and not data.foil.loc[{"pair": pair}].item():
                reasons.loc[at] = "the pair has no foil"
            elif metric in ("logit", "neg_rank") and data.answer_length.loc[{"pair": pair}].item() > 1:
                reasons.loc[at] = (
                    f"an answer of several tokens has no single {'logit' if metric == 'logit' else 'rank'}"
                )
            elif np.isnan(total.loc[at].item()):
                reasons.loc[at] = "an unedited run's logits are not finite"
    return reasons


def _half_interval(measurements: Measurements) -> xr.DataArray:
    """Half of the total effect's 95 % interval over draws of noise (Student's t); 0 where nothing was drawn."""
    data = measurements.data
    if "corrupt_deviation" not in data:
        return xr.zeros_like(data.clean)
    from scipy import stats

    draws = measurements.provenance["noise"]["draws"]
    return data.corrupt_deviation / draws**0.5 * float(stats.t.ppf(0.975, draws - 1))


def _fraction_reason(total: xr.DataArray, threshold: xr.DataArray, uncertain: xr.DataArray) -> xr.DataArray:
    reasons = xr.full_like(total, "", dtype=object)
    for index in np.ndindex(*total.shape):
        effect, bound, half = (array.values[index] for array in (total, threshold, uncertain))
        if abs(effect) <= bound:
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


def _damage_like(data: xr.Dataset) -> xr.DataArray:
    change = data.restored - data.corrupt
    by = {name: change.sel(metric=name, drop=True) for name in ("logit_diff", "log_prob", "entropy")}
    return (by["logit_diff"] > 0) & (by["log_prob"] <= 0) & (by["entropy"] > 0)
