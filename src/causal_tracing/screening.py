"""Estimates as a screen: which sites they single out, and how far they agree with the effects of those verified.

Holds no torch. The dataset of an Attribution, beside what `Attribution.estimates` shows:

    verified_component, _layer, _position, _unit, _estimate, _exact, _why   (verified)   unit −1: the whole component
    clean, corrupt                                                          ()           the unedited runs
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import xarray as xr
from jaxtyping import Bool, Float
from scipy import stats

from causal_tracing import results
from causal_tracing.documents import plain
from causal_tracing.errors import InvalidOption, nearest
from causal_tracing.prompts import TokenPair
from causal_tracing.reading import number, percent
from causal_tracing.results import Measurements

METHODS = {"atp": "attribution patching", "ig": "integrated gradients"}
TEXT = "attribution.json"
SMALLEST = 0.02  # of the total effect: the least effect that is of interest
CONFIDENCE = 0.95
FEWEST = 3  # sites that a correlation needs: two always give 1 or −1
COLUMNS = ("component", "layer", "position", "unit", "estimate", "exact", "why")

At = tuple[int, int, int]  # layer, position, unit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Screened:
    """One component's estimates, and the sites whose effect is known without them: zeros and cuts."""

    estimates: Float[np.ndarray, "layer position unit"]
    structural_zero: Bool[np.ndarray, "layer position"]
    cut: Bool[np.ndarray, "layer position"]
    units: bool

    @property
    def candidates(self) -> list[At]:
        """The sites about which an estimate says something, the largest estimates first; undefined ones before all."""
        open_sites = np.argwhere(np.broadcast_to(~(self.structural_zero | self.cut)[..., None], self.estimates.shape))
        sizes = np.abs(self.estimates[tuple(open_sites.T)])
        order = np.argsort(-np.nan_to_num(sizes, nan=np.inf), kind="stable")
        return [(int(layer), int(position), int(unit)) for layer, position, unit in open_sites[order]]

    def chosen(self, verify: int, sample: int, seed: Sequence[int]) -> list[tuple[At, str]]:
        """What is to be verified, and why: the "top" estimates, and a random "sample" of the rest, all alike likely."""
        ranked = self.candidates
        rest = ranked[verify:]
        picks = np.random.default_rng(seed).choice(len(rest), size=min(sample, len(rest)), replace=False)
        return [(at, "top") for at in ranked[:verify]] + [(rest[n], "sample") for n in sorted(picks.tolist())]


def agreement_of(
    verified: pd.DataFrame, *, sites: int, top: int, threshold: float, component: str
) -> dict[str, float | int | str]:
    """How one component's estimates agree with the exact effects of its verified sites; NaN with a reason in `notes`.

    `pearson`, `spearman`: over all verified, of which the largest estimates are all; `sampled_…`: over the random
    sample alone, which speaks for the rest. `sign_agreement`: of the verified effects larger than the threshold, the
    share whose sign is right. `recall`: of the K largest verified effects (K as many as were verified as top), the
    share that the estimates had among theirs: exact if all sites were verified, else the most that it can be.
    `above_at_most`: the share of the rest whose effect is larger than the threshold is below it, with `confidence`
    (Clopper-Pearson; if none of n is, 1 − (1 − f)^n = confidence gives f); known where all the rest was verified.
    """
    notes: list[str] = []
    sampled, rest = verified[verified.why == "sample"], sites - top
    above = int((sampled.exact.abs() > threshold).sum())
    everything = len(sampled) == rest
    if rest == 0:
        notes.append("there is no rest: every site is among the top")
    elif not len(sampled):
        notes.append("nothing of the rest was sampled: nothing is known about it")
    bound = above / rest if everything and rest else _share_at_most(above, len(sampled))
    return {
        **{"component": component, "sites": sites, "top": top, "sampled": len(sampled)},
        **_correlations(verified, "", notes),
        **_correlations(sampled, "sampled_", notes),
        "sign_agreement": _sign_agreement(verified, threshold, notes),
        "recall": _recall(verified, top, notes),
        "recall_is": "exact" if everything else "at most",
        **{"threshold": threshold, "sampled_above": above, "above_at_most": bound},
        "confidence": (1.0 if everything else CONFIDENCE) if rest else np.nan,
        "notes": "; ".join(notes),
    }


def _correlations(verified: pd.DataFrame, prefix: str, notes: list[str]) -> dict[str, float]:
    names = f"{prefix}pearson", f"{prefix}spearman"
    estimate, exact = (verified[name].to_numpy(dtype=float) for name in ("estimate", "exact"))
    among = "sampled" if prefix else "verified"
    if len(verified) < FEWEST:
        notes.append(f"a correlation needs {FEWEST} sites, and {len(verified)} were {among}")
    elif not (np.isfinite(estimate).all() and np.isfinite(exact).all()):
        notes.append(f"an estimate or an effect of those {among} is not finite")
    elif np.ptp(estimate) == 0 or np.ptp(exact) == 0:
        constant = "estimates" if np.ptp(estimate) == 0 else "effects"
        notes.append(f"the {constant} of those {among} are all equal: they correlate with nothing")
    else:
        found = stats.pearsonr(estimate, exact).statistic, stats.spearmanr(estimate, exact).statistic
        return dict(zip(names, map(float, found), strict=True))
    return dict.fromkeys(names, np.nan)


def _sign_agreement(verified: pd.DataFrame, threshold: float, notes: list[str]) -> float:
    large = verified[verified.exact.abs() > threshold]
    if not len(large):
        notes.append("no verified effect is larger than the threshold: there is no sign to agree on")
        return np.nan
    return float((np.sign(large.estimate) == np.sign(large.exact)).mean())


def _recall(verified: pd.DataFrame, top: int, notes: list[str]) -> float:
    if not top:
        notes.append("no site was verified as top: there is nothing to recall")
        return np.nan
    strongest = verified.assign(size=verified.exact.abs()).nlargest(top, "size")
    return float((strongest.why == "top").mean())


def _share_at_most(above: int, count: int) -> float:
    """The upper end of a one-sided interval for a share of which `above` of `count` were seen; NaN without any."""
    if not count:
        return np.nan
    interval = stats.binomtest(above, count, alternative="less").proportion_ci(CONFIDENCE, method="exact")
    return float(interval.high)


def assemble_screen(
    pair: TokenPair,
    screened: Mapping[str, Screened],
    sites: Mapping[str, Sequence[tuple[At, str]]],
    exact: Mapping[str, Sequence[float]],
    *,
    unedited: Mapping[str, float],
    unit: str,
    provenance: Mapping[str, Any],
) -> "Attribution":
    """Estimates, verified sites and their agreement as one result that can be kept."""
    rows = [
        (name, *at[:2], at[2] if screened[name].units else -1, screened[name].estimates[at], effect, why)
        for name, chosen in sites.items()
        for (at, why), effect in zip(chosen, exact[name], strict=True)
    ]
    verified = pd.DataFrame(rows, columns=list(COLUMNS))
    threshold = SMALLEST * abs(unedited["clean"] - unedited["corrupt"])
    agreement = [
        agreement_of(
            verified[verified.component == name],
            sites=len(screened[name].candidates),
            top=sum(why == "top" for _, why in chosen),
            threshold=threshold,
            component=name,
        )
        for name, chosen in sites.items()
    ]
    data = _estimates(screened, f"estimated_{provenance['options']['direction']}")
    kinds: dict[str, Any] = dict.fromkeys(("layer", "position", "unit"), int) | {"estimate": float, "exact": float}
    for name in COLUMNS:
        data[f"verified_{name}"] = "verified", verified[name].to_numpy(dtype=kinds.get(name, object))
    data = data.assign({name: ((), value) for name, value in unedited.items()})
    tokens = {"clean_token": pair.clean.strings, "corrupt_token": pair.corrupt.strings}
    data = data.assign_coords({name: ("position", np.array(texts, dtype=object)) for name, texts in tokens.items()})
    rows = [{name: plain(value) for name, value in row.items()} for row in agreement]
    return Attribution(Measurements(data=data, provenance={**provenance, "unit": unit, "agreement": rows}))


def _estimates(screened: Mapping[str, Screened], name: str) -> xr.Dataset:
    """Blocks, heads and neurons as variables of their own: they have other numbers of units."""
    first = next(iter(screened.values())).estimates
    data = xr.Dataset(coords={"layer": np.arange(first.shape[0]), "position": np.arange(first.shape[1])})
    blocks = {component: found for component, found in screened.items() if not found.units}
    heads = {component: found for component, found in screened.items() if found.units and component != "neurons"}
    if blocks:
        data = data.assign_coords(component=np.array(list(blocks), dtype=object))
        values = np.stack([found.estimates[..., 0] for found in blocks.values()])
        data[name] = ("component", "layer", "position"), values
    if heads:
        data = data.assign_coords(head_component=np.array(list(heads), dtype=object))
        most = max(found.estimates.shape[2] for found in heads.values())
        values = np.full((len(heads), *first.shape[:2], most), np.nan)  # keys may have fewer heads than queries
        for row, found in zip(values, heads.values(), strict=True):
            row[..., : found.estimates.shape[2]] = found.estimates
        data[f"{name}_heads"] = ("head_component", "layer", "position", "head"), values
    if "neurons" in screened:
        data[f"{name}_neurons"] = ("layer", "position", "neuron"), screened["neurons"].estimates
    data = data.assign_coords(any_component=np.array(list(screened), dtype=object))
    for flag in ("structural_zero", "cut"):
        values = np.stack([getattr(found, flag) for found in screened.values()])
        data[flag] = ("any_component", "layer", "position"), values
    return data


class Attribution:
    """Estimated effects of every site, the exact effects of some of them, and how the two agree."""

    def __init__(self, measurements: Measurements) -> None:
        self.measurements = measurements

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """What `save` wrote. Raises InvalidResults for a folder that is missing, damaged, or of a newer version."""
        return cls(results.open_measurements(folder, text=TEXT))

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Writes a folder that `Attribution.open` reads back without loss. Raises InvalidResults, MachineError."""
        return results.save(self.measurements, folder, overwrite=overwrite, text=TEXT)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the numbers come from: model, versions, options, and the command that makes them again."""
        return self.measurements.provenance

    @property
    def estimates(self) -> xr.Dataset:
        """`estimated_restoration` (or `estimated_disruption`), in the metric's unit; positive: supports the clean.

        Over (component, layer, position); with `_heads` over (head_component, layer, position, head), NaN where a
        component has fewer heads; with `_neurons` over (layer, position, neuron). `structural_zero` and `cut` mark
        the sites about which an estimate has nothing to say: the effect is 0, or is the total effect.
        """
        data = self.measurements.data
        return data.drop_vars([name for name in data.variables if str(name).startswith("verified_")]).drop_vars(
            ["clean", "corrupt"]
        )

    def of(self, component: str) -> xr.DataArray:
        """One component's estimates over (layer, position), and head or neuron where it has them."""
        data, name = self.measurements.data, f"estimated_{self.provenance['options']['direction']}"
        asked = self.provenance["options"]["components"]
        if component not in asked:
            raise InvalidOption(f"{component!r} was not estimated. {nearest(component, asked)}")
        if component == "neurons":
            return data[f"{name}_neurons"]
        if "component" in data.coords and component in data.component.values:
            return data[name].sel(component=component)
        return data[f"{name}_heads"].sel(head_component=component).dropna("head", how="all")

    @cached_property
    def verified(self) -> pd.DataFrame:
        """The sites that were patched exactly: estimate, exact effect, and why ("top" or "sample")."""
        data = self.measurements.data
        found = pd.DataFrame({name: data[f"verified_{name}"].values for name in COLUMNS})
        units = found.unit.astype("Int64")
        return found.assign(unit=units.mask(units < 0))

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """How estimates and exact effects agree, a row a component; what each column means: `agreement_of`."""
        rows = pd.DataFrame(self.provenance["agreement"]).set_index("component")
        texts = ("recall_is", "notes")
        return rows.astype({name: float for name in rows if name not in (*texts, "sites", "top", "sampled")})

    def summary(self) -> str:
        """What was estimated and how well that agrees with exact patching, in words that claim no more."""
        return "\n\n".join([_headline(self), _agreement_table(self), _strongest(self)])

    def __repr__(self) -> str:
        return self.summary()

    def to_dict(self) -> dict[str, Any]:
        """Estimates, verified sites and agreement as plain values; what is undefined is None."""
        record = self.provenance
        options, data = record["options"], self.measurements.data
        names = options["components"]
        return {
            "schema": results.SCHEMA,
            **{name: record[name] for name in ("model", "engine", "dtype", "unit")},
            **{name: options[name] for name in ("metric", "method", "steps", "direction")},
            "pair": record["pairs"][0],
            **{name: plain(float(data[name])) for name in ("clean", "corrupt")},
            f"estimated_{options['direction']}": {name: plain(self.of(name).values.tolist()) for name in names},
            "verified": [
                {name: None if pd.isna(value) else plain(value) for name, value in row.items()}
                for row in self.verified.astype(object).to_dict("records")
            ],
            "agreement": record["agreement"],
            "provenance": {name: value for name, value in record.items() if name != "agreement"},
        }


def _headline(result: Attribution) -> str:
    record, data = result.provenance, result.measurements.data
    pair, options = record["pairs"][0], record["options"]
    clean, corrupt = float(data.clean), float(data.corrupt)
    other = f"{pair['corrupt']} → {pair['foil'].strip()}" if pair.get("foil") else pair["corrupt"]
    layers, sites = data.sizes["layer"], sum(row["sites"] for row in record["agreement"])
    cost = f"{options['steps']} forwards and backwards for each of {layers * len(options['components'])} layers"
    return (
        f"{pair['clean']} → {pair['answer'].strip()}   against   {other}\n"
        f"total effect {number(clean - corrupt)} {record['unit']} (clean {number(clean)}, corrupt {number(corrupt)})"
        f"     {record['model']} · {record['dtype']} · {record['engine']}\n\n"
        f"{options['direction'].capitalize()}, estimated by {METHODS[options['method']]}: a screen. Estimates are not "
        f"effects.\n{sites:,} sites from {'2 forwards and 1 backward' if options['method'] == 'atp' else cost}; "
        f"{len(result.verified):,} of them were then patched exactly."
    )


def _agreement_table(result: Attribution) -> str:
    rows = result.provenance["agreement"]
    threshold = f"{number(rows[0]['threshold'])} {result.provenance['unit']}"
    lines = [
        f"How the estimates agree with exact patching (of the rest: with effects above {threshold})",
        f"{'component':12}{'sites':>9}{'verified':>11}{'Pearson':>9}{'Spearman':>10}{'signs':>8}{'top-K recall':>14}"
        f"{'sample: Pearson':>17}{'Spearman':>10}   above the threshold",
    ]
    for row in rows:
        recall = _figure(row["recall"]) if row["recall"] is None else f"{row['recall']:.2f}"
        recall = recall if row["recall_is"] == "exact" or row["recall"] is None else f"≤ {recall}"
        signs = "–" if row["sign_agreement"] is None else percent(row["sign_agreement"])
        lines.append(
            f"{row['component']:12}{row['sites']:>9,}{row['top']:>6}+{row['sampled']:<4}{_figure(row['pearson']):>9}"
            f"{_figure(row['spearman']):>10}{signs:>8}{recall:>14}{_figure(row['sampled_pearson']):>17}"
            f"{_figure(row['sampled_spearman']):>10}   {_above(row)}"
        )
        lines += [f"{'':12}undefined: {row['notes']}."] if row["notes"] else []
    return "\n".join(lines)


def _above(row: Mapping[str, Any]) -> str:
    if row["above_at_most"] is None:
        return "unknown"
    seen = f"{row['sampled_above']} of {row['sampled']} sampled"
    if row["confidence"] == 1:
        return f"{seen}, which are all of the rest"
    return f"{seen}: below {100 * row['above_at_most']:.1f} % of the rest, with {percent(row['confidence'])} confidence"


def _figure(value: float | None) -> str:
    return "–" if value is None else number(value)


def _strongest(result: Attribution, count: int = 10) -> str:
    direction = result.provenance["options"]["direction"]
    found = result.verified.assign(size=result.verified.exact.abs()).nlargest(count, "size")
    lines = [
        f"The strongest of the verified sites ({direction}, exact, beside its estimate)",
        f"{'component':12}{'layer':>6}{'position':>10}{'unit':>7}{direction:>14}{'estimate':>10}  chosen as",
    ]
    for row in found.itertuples():
        unit = "" if pd.isna(row.unit) else row.unit
        lines.append(
            f"{row.component:12}{row.layer:>6}{row.position:>10}{unit:>7}{number(row.exact):>14}"
            f"{number(row.estimate):>10}  {row.why}"
        )
    return "\n".join(lines)
