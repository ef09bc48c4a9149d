"""Sites as people read them: one site's numbers as a row, its name, and what its numbers mean together."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

HIGH, NEARLY_ZERO = 0.5, 0.1
UNITS = ("head", "neuron")
UNPAIRED = "–"  # stands where a clean token has no corrupt one
# What is known of a site where windows, noise or severing were asked for.
BESIDE = (
    *("window_first", "window_last", "restoration_sum", "disruption_sum"),
    *("restoration_deviation", "disruption_deviation", "severed_attn_out", "severed_mlp_out"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """One site's numbers, in the metric's unit and as fractions of the total effect (None where undefined).

    Those with a default belong to windows, noise and severing (`BESIDE`): None where they were not asked for.
    """

    component: str
    layer: int
    unit: int | None
    position: int | str
    clean_token: str
    corrupt_token: str
    role: str
    restoration: float | None
    disruption: float | None
    interaction: float | None
    restored_fraction: float | None
    lost_fraction: float | None
    pattern: str
    window_first: int | None = None
    window_last: int | None = None
    restoration_sum: float | None = None
    disruption_sum: float | None = None
    restoration_deviation: float | None = None
    disruption_deviation: float | None = None
    severed_attn_out: float | None = None
    severed_mlp_out: float | None = None

    @property
    def window(self) -> str:
        """The layers that are patched together, as `layers 11 to 20`; "" for a single one."""
        if self.window_first is None or self.window_first == self.window_last:
            return ""
        return f"layers {self.window_first} to {self.window_last}"


def pattern(restored: float | None, lost: float | None) -> str:
    """What a restored and a lost fraction mean together (AND, OR, SUM, XOR); "" where only the numbers speak."""
    if restored is None or lost is None:
        return ""
    high, zero = (restored >= HIGH, lost >= HIGH), (abs(restored) < NEARLY_ZERO, abs(lost) < NEARLY_ZERO)
    if all(high):
        return "a bottleneck for this contrast"
    if all(zero):
        return "not on the path for this contrast, or masked by self-repair"
    if high[0] and zero[1]:
        return "sufficient here, but backed up elsewhere (OR-like)"
    if zero[0] and high[1]:
        return "necessary, but needs partners (AND-like)"
    if restored * lost < 0 and not any(zero):
        return "matters, but its sign depends on the rest: no single number describes it (XOR-like)"
    if restored < 0 and lost < 0 and not any(zero):
        return "opposes the clean answer"
    between = all(NEARLY_ZERO <= value < HIGH for value in (restored, lost))
    if between and abs(restored - lost) < NEARLY_ZERO / 2:
        return "adds its share, independently of the rest (SUM-like)"
    return ""


def number(value: float) -> str:
    """A number for people: three significant digits or two decimals, with a real minus sign."""
    text = f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"
    return text.replace("-", "−")


def percent(fraction: float) -> str:
    """A fraction in per cent, with a real minus sign."""
    return f"{round(100 * fraction)} %".replace("-", "−")


def place(row: SiteRow) -> str:
    """A site for people: `token 2 (osse | iffel)`."""
    if isinstance(row.position, str):
        return "all tokens together" if row.position == "together" else f"the {row.position.replace('_', ' ')} token"
    clean, corrupt = (
        row.clean_token.strip() or repr(row.clean_token),
        row.corrupt_token.strip() or (repr(row.corrupt_token) if row.corrupt_token else UNPAIRED),
    )
    shown = clean if row.clean_token == row.corrupt_token else f"{clean} | {corrupt}"
    return f"the last token ({shown})" if row.role == "last" else f"token {row.position} ({shown})"


def site_name(row: SiteRow) -> str:
    """A site's component, layer and unit for people: `z layer 3 head 1`."""
    if row.unit is None:
        return f"{row.component} layer {row.layer}" + (f" ({row.window})" if row.window else "")
    if row.component == "neurons":
        return f"neuron {row.unit} of layer {row.layer}"
    return f"{row.component} layer {row.layer} head {row.unit}"


def with_share(effect: float | None, fraction: float | None) -> str:
    """An effect with its share of the total effect, for people; a dash where it was not measured."""
    if effect is None:
        return "–"
    return number(effect) + (f" ({percent(fraction)})" if fraction is not None else "")


def _unit_dim(found: xr.Dataset) -> str:
    return next(name for name in UNITS if name in found.dims)


def shown_first(found: xr.Dataset) -> str:
    """The direction that is shown unless another is asked for."""
    return "restoration" if "restoration" in found else "disruption"


def site_row(found: xr.Dataset, component: str, layer: int, position: int | str, unit: int | None = None) -> SiteRow:
    """The row of one site of one pair and metric; without a pattern where something else than the donor is written."""
    cell = found.sel(component=component, layer=layer, position=position)
    cell = cell if unit is None else cell.sel({_unit_dim(found): unit})

    def value(name: str) -> float | None:
        return float(cell[name]) if name in cell and np.isfinite(cell[name].item()) else None

    position = int(position) if str(position).isdigit() else str(position)
    tokens = {"clean_token": "", "corrupt_token": "", "clean_role": str(position)}
    if isinstance(position, int):
        tokens = {name: str(found[name].values[position]) for name in tokens}
    restored, lost = value("restored_fraction"), value("lost_fraction")
    return SiteRow(
        component=str(component),
        layer=int(layer),
        unit=None if unit is None else int(unit),
        position=position,
        clean_token=tokens["clean_token"],
        corrupt_token=tokens["corrupt_token"],
        role=tokens["clean_role"],
        restoration=value("restoration"),
        disruption=value("disruption"),
        interaction=value("interaction"),
        restored_fraction=restored,
        lost_fraction=lost,
        pattern=pattern(restored, lost) if found.attrs["write"] == "donor" else "",
        **{name: value(name) for name in BESIDE if not name.startswith("window")},
        **{name: int(cell[name]) for name in ("window_first", "window_last") if name in cell},
    )
