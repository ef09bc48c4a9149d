"""The result of a screen by gradient: estimates, what was patched to check them, and how far both agree."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy import stats

from causal_tracing.errors import InvalidResults
from causal_tracing.interventions.sites import HEADS, MEDIATORS, Site
from causal_tracing.results.estimates import Checked
from causal_tracing.results.storage.atomic import write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONFIDENCE = 0.95
OF_INTEREST = 0.02  # of the total effect: below, a sign means nothing
SHOWN = 10


class Attribution:
    """Estimated effects of every site, and the exact ones of those that were patched. An estimate is no effect."""

    def __init__(
        self,
        *,
        estimates: Mapping[str, np.ndarray],
        checked: Sequence[Checked],
        tokens: Sequence[str],
        provenance: Mapping[str, Any],
    ) -> None:
        self._estimates = estimates
        self.checked = tuple(checked)
        self.tokens = tuple(tokens)
        self.provenance = provenance

    @property
    def direction(self) -> str:
        """What is estimated: restoration or disruption."""
        return str(self.provenance["direction"])

    @cached_property
    def estimates(self) -> Mapping[str, xr.DataArray]:
        """By component, what is estimated (layer, position), for heads and neurons (layer, position, unit)."""
        found = {}
        for component, values in self._estimates.items():
            unit = "head" if component in HEADS else "neuron"
            dims = ("layer", "position", unit) if component in MEDIATORS else ("layer", "position")
            shaped = values if component in MEDIATORS else values[..., 0]
            coordinates = {"token": ("position", list(self.tokens))}
            found[component] = xr.DataArray(shaped, coordinates, dims, name=f"estimated_{self.direction}")
        return found

    @cached_property
    def verified(self) -> pd.DataFrame:
        """The sites that were patched, with estimate and exact effect, strongest exact effect first."""
        rows = [
            {**asdict(one.site), "estimate": one.estimate, "exact": one.exact, "why": one.why} for one in self.checked
        ]
        table = pd.DataFrame(rows, columns=["component", "layer", "position", "unit", "estimate", "exact", "why"])
        return table.sort_values("exact", key=abs, ascending=False, ignore_index=True)

    @cached_property
    def agreement(self) -> pd.DataFrame:
        """A row a component: how far estimates and exact effects agree on the sites that were patched.

        `same_sign`: of the effects of at least 2 % of the total effect, the share whose estimate has the same sign.
        `recall`: of as many strongest exact effects as there are top estimates, the share that was among those; the
        most that it can be where not every site was patched, for a stronger one may not have been drawn.
        `sampled_max`: the largest exact effect (by size) in the random sample of the rest; with 95 % confidence less
        than `above` of the rest exceeds it (1 - 0.05^(1/n); 0 where all of the rest was patched). NaN where undefined:
        constant numbers have no correlation.
        """
        return pd.DataFrame([self._agreement(name) for name in self._estimates]).set_index("component")

    def _agreement(self, component: str) -> dict[str, Any]:
        mine = [one for one in self.checked if one.site.component == component]
        estimate, exact = (np.array([getattr(one, name) for one in mine]) for name in ("estimate", "exact"))
        top = np.array([one.why == "top" for one in mine], dtype=bool)
        sampled = int((~top).sum())
        counts = abs(exact) >= OF_INTEREST * abs(self.provenance["total_effect"])
        strongest = np.argsort(-abs(exact), kind="stable")[: int(top.sum())]
        varies = len(mine) > 1 and np.ptp(estimate) > 0 and np.ptp(exact) > 0
        rest = abs(exact[~top]).max() if sampled else np.nan
        return {
            "component": component,
            "verified": int(top.sum()),
            "sampled": sampled,
            "pearson": np.corrcoef(estimate, exact)[0, 1].item() if varies else np.nan,
            "spearman": _spearman(estimate, exact) if varies else np.nan,
            "same_sign": float((np.sign(estimate) == np.sign(exact))[counts].mean()) if counts.any() else np.nan,
            "recall": float(top[strongest].mean()) if top.any() else np.nan,
            "sampled_max": float(rest),
            "above": self._above(component, sampled, len(mine)),
            "reason": "" if varies else "the sites that were patched do not vary, so that nothing correlates",
        }

    def _above(self, component: str, sampled: int, patched: int) -> float:
        """The share of the rest that may exceed what was seen in the sample."""
        if patched == self.provenance["sites"][component]:
            return 0.0
        return 1 - (1 - CONFIDENCE) ** (1 / sampled) if sampled else np.nan

    def summary(self) -> str:
        """What was estimated, how it was checked, and how far it can be believed."""
        record = self.provenance
        lines = [
            f"{record['clean']} →{record['answer']}   against   {record['corrupt']}",
            f"estimated {self.direction} ({self._how}, {record['metric']}) · {record['model']}",
            "Estimates are a screen, not effects. What was patched exactly says how far to believe them:",
            "",
            f"{'component':12}{'patched':>14}{'pearson':>9}{'spearman':>10}{'same sign':>11}{'recall':>9}",
        ]
        for name, row in self.agreement.iterrows():
            patched = f"{row.verified:.0f} + {row.sampled:.0f}"
            recall = f"{'' if row.above == 0 else '≤ '}{row.recall:.2f}"
            lines.append(
                f"{name:12}{patched:>14}{row.pearson:>9.2f}{row.spearman:>10.2f}{row.same_sign:>11.2f}{recall:>9}"
            )
        lines += ["", *self._left_out(), "", f"{'strongest of those patched':44}{'exact':>10}{'estimate':>10}"]
        strongest = sorted(self.checked, key=lambda one: -abs(one.exact))[:SHOWN]
        lines += [f"{self._named(one.site):44}{one.exact:>10.2f}{one.estimate:>10.2f}" for one in strongest]
        return "\n".join(lines)

    @property
    def _how(self) -> str:
        record = self.provenance
        return "attribution patching" if record["method"] == "atp" else f"integrated gradients, {record['steps']} steps"

    def _named(self, site: Site) -> str:
        kind = "neuron" if site.component == "neurons" else "head"
        unit = "" if site.unit is None else f" {kind} {site.unit}"
        return (
            f"{site.component} layer {site.layer}{unit}, token {site.position} ({self.tokens[site.position].strip()})"
        )

    def _left_out(self) -> Iterator[str]:
        for name, row in self.agreement.iterrows():
            if row.above == 0:
                yield f"{name}: every site that can matter was patched."
            elif row.sampled:
                yield (
                    f"{name}: of {row.sampled:.0f} random sites among the rest, none has an effect above "
                    f"{row.sampled_max:.2g}; so with 95 % confidence less than {100 * row.above:.1f} % of the rest do."
                )

    def plot(self) -> "Figure":
        """Estimates against exact effects, a panel a component; on the dotted line both are equal."""
        import matplotlib.pyplot as plt

        names = list(self._estimates)
        figure, panels = plt.subplots(1, len(names), figsize=(3.2 * len(names), 3), squeeze=False, layout="constrained")
        for axes, name in zip(panels[0], names, strict=True):
            for why, marker in (("top", "o"), ("sample", ".")):
                mine = [one for one in self.checked if (one.site.component, one.why) == (name, why)]
                axes.plot([one.exact for one in mine], [one.estimate for one in mine], marker, label=why, alpha=0.6)
            axes.axline((0, 0), slope=1, linestyle=":", color="0.5")
            axes.set_title(f"{name} (r = {self.agreement.pearson[name]:.2f})", fontsize=9)
            axes.set_xlabel(f"exact {self.direction}", fontsize=8)
        panels[0][0].set_ylabel("estimate", fontsize=8)
        panels[0][0].legend(fontsize=8)
        return figure

    def to_html(self, path: str | Path | None = None) -> str:
        """A page without script: agreement, scatter, what was patched; also written to `path`. Raises MachineError."""
        from causal_tracing.report.page.estimates import screen_page

        names = [self._named(one.site) for one in self.checked]
        return screen_page(self.to_dict(), names, list(self._left_out()), self._how, path)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values; undefined numbers are null."""
        agreement = self.agreement.reset_index().to_dict("records")
        return {
            "provenance": dict(self.provenance),
            "tokens": list(self.tokens),
            "agreement": [{name: _plain(value) for name, value in row.items()} for row in agreement],
            "verified": [
                {
                    **asdict(one.site),
                    "estimate": _plain(one.estimate),
                    "exact": _plain(one.exact),
                    "why": one.why,
                }
                for one in self.checked
            ],
            "estimates": {name: _plain(values.tolist()) for name, values in self._estimates.items()},
        }

    def save(self, path: str | Path) -> Path:
        """Writes one JSON file, whole or not at all. Raises MachineError."""
        path = Path(path)
        found = self.to_dict()
        write_text(path, json.dumps(found | {"sha256": _digest(found)}, allow_nan=False))
        return path

    @classmethod
    def open(cls, path: str | Path) -> "Attribution":
        """What `save` wrote. Raises InvalidResults."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found.pop("sha256") != _digest(found):
                raise ValueError("its content is not what was written")
            rows = [dict(row) for row in found["verified"]]
            checked = [
                Checked(
                    site=Site(*(row[name] for name in ("component", "layer", "position", "unit"))),
                    estimate=np.nan if row["estimate"] is None else row["estimate"],
                    exact=np.nan if row["exact"] is None else row["exact"],
                    why=row["why"],
                )
                for row in rows
            ]
            estimates = {name: np.array(values, dtype=float) for name, values in found["estimates"].items()}
            return cls(estimates=estimates, checked=checked, tokens=found["tokens"], provenance=found["provenance"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidResults(f"{path} is no saved attribution: {error!r}. Make it again.") from None

    def __repr__(self) -> str:
        return self.summary()


def _digest(found: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    return np.corrcoef(stats.rankdata(one), stats.rankdata(other))[0, 1].item()


def _plain(value: Any) -> Any:
    """Numbers as JSON has them, in lists of any depth: what is not finite is None."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
