"""From worlds' numbers to labelled arrays: each goes to its cell, each pair's cells to the maps of their kinds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from causal_tracing.patching.cells import Cell
from causal_tracing.patching.grid import At, Grid
from causal_tracing.patching.metrics.metric import Metric
from causal_tracing.patching.metrics.scoring import undefined
from causal_tracing.patching.preview import CHOICES, Preview
from causal_tracing.prompts.answers import spelled
from causal_tracing.prompts.pairs import TokenPair
from causal_tracing.results.arms import Arm
from causal_tracing.results.measurements import Measurements

NO_TOKEN = -1  # where a number of a token is wanted and there is none


class Sums:
    """One pair's numbers on their way into a map: added up cell by cell, draw by draw.

    A cell of several worlds (a role of several tokens) is their mean; so are several draws, of which the standard
    deviation is kept too. `given` says which cells are patched already, in all of the map, and `unreached` which are
    their base run because nothing arrives there: no number comes for them. `metrics` are the first of those that the
    unedited runs have.
    """

    def __init__(
        self,
        grid: Grid,
        draws: int,
        metrics: Sequence[str],
        given: np.ndarray | None = None,
        unreached: np.ndarray | None = None,
    ) -> None:
        self.grid = grid
        self.given = given
        self.unreached = np.zeros(grid.shape, dtype=bool) if unreached is None else unreached
        self.draws = draws
        self.metrics = metrics
        self.numbers = {arm.name: np.zeros((len(metrics), draws, *grid.shape)) for arm in grid.arms}
        self.taken = {arm.name: np.zeros((draws, *grid.shape), dtype=int) for arm in grid.arms}
        self.zeros, self.cuts = np.zeros(grid.shape, dtype=int), np.zeros(grid.shape, dtype=int)

    def add(self, cell: Cell, value: np.ndarray, *, zero: bool, cut: bool) -> None:
        """One world's numbers by metric, and what is known of it beforehand."""
        for at in self.grid.alike(cell.at):
            self.numbers[cell.arm.name][(slice(None), cell.draw, *at)] += value
            self.taken[cell.arm.name][(cell.draw, *at)] += 1
            # Flags are of the place, whatever is measured there: counted in one arm, as the cells are.
            if cell.arm == self.grid.arms[0]:
                self.zeros[at] += zero
                self.cuts[at] += cut

    def told(self, arm: Arm, at: At, unedited: np.ndarray) -> np.ndarray:
        """What the map says of one cell, by metric."""
        return self._drawn(arm, unedited[:, : len(self.metrics)]).mean(1)[(slice(None), *at)]

    def measured(self, arm: Arm) -> np.ndarray:
        """Whether a cell has a number in this arm, by place."""
        return (self.taken[arm.name].sum(0) > 0) | self.unreached

    def map(self, unedited: np.ndarray) -> xr.Dataset:
        """The map so far, of one pair: numbers over (metric, the kind's axes), and flags.

        `unedited` holds the clean run's numbers and then the corrupt runs' [run, metric].
        """
        unedited = unedited[:, : len(self.metrics)]
        axes = self.grid.kind.axes
        found: dict[str, Any] = {}
        for arm in self.grid.arms:
            drawn = self._drawn(arm, unedited)
            found[arm.raw] = (("metric", *axes), drawn.mean(1))
            if self.draws > 1:
                # Of the effect, draw by draw: noise moves the run that is patched and the patched run together.
                deviation = _deviation(drawn - _base(arm, unedited, drawn))
                found[f"{arm.raw}_deviation"] = (("metric", *axes), deviation)
        counts = self.taken[self.grid.arms[0].name].sum(0)
        found["structural_zero"] = (axes, ((counts > 0) & (self.zeros == counts)) | self.unreached)
        # Between runs that do not differ every site is a cut: there it is a zero, and is told as one.
        found["cut"] = (axes, (self.cuts > 0) & (self.zeros < counts))
        found["unpaired"] = (axes, (counts == 0) & ~self.unreached)
        if self.given is not None:
            found["given"] = (axes, self.given)
        return xr.Dataset(found, self.grid.labels | {"metric": _texts(self.metrics)})

    def _drawn(self, arm: Arm, unedited: np.ndarray) -> np.ndarray:
        """The numbers of each draw [metric, draw, the kind's axes]; NaN where nothing was run."""
        taken = self.taken[arm.name]
        found = self.numbers[arm.name] / np.where(taken, taken, np.nan)
        base = _base(arm, unedited, found)
        if not arm.alone:
            return np.where(self.unreached, base, found)
        joint = next(each for each in self.grid.arms if each.is_direction and each.into == arm.into)
        return self.grid.added_up(found, self._drawn(joint, unedited), base)


def _base(arm: Arm, unedited: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The numbers of the runs that an arm patches, by metric and draw (or one for all), as they go with `found`."""
    base = unedited[1:].T if arm.restores else unedited[:1].T
    return base.reshape(*base.shape, *[1] * (found.ndim - base.ndim))


def _deviation(drawn: np.ndarray) -> np.ndarray:
    """The standard deviation over draws (axis 1); NaN for a single draw."""
    return drawn.std(1, ddof=1) if drawn.shape[1] > 1 else np.full_like(drawn[:, 0], np.nan)


def measurements_of(
    preview: Preview,
    unedited: np.ndarray,
    spread: np.ndarray,
    maps: Mapping[str, xr.Dataset],
    metrics: Sequence[Metric],
) -> Measurements:
    """One pair's numbers with their names: its unedited runs [run, metric], clean first, and its maps by kind."""
    clean, corrupt = unedited[0], unedited[1:].T
    if not corrupt.shape[1]:  # the clean run alone
        corrupt = np.full((len(clean), 1), np.nan)
    numbers = {"clean": clean, "corrupt": corrupt.mean(1), "corrupt_deviation": _deviation(corrupt), "spread": spread}
    # Where it stands there, effects have an interval over draws of noise.
    if not np.isfinite(numbers["corrupt_deviation"]).any():
        del numbers["corrupt_deviation"]
    variables: dict[str, Any] = {name: (("metric", "pair"), each[:, None]) for name, each in numbers.items()}
    id = _texts([preview.pair.id])
    coordinates = {
        "metric": _texts([metric.name for metric in metrics]),
        "unit": (("metric",), _texts([metric.unit for metric in metrics])),
        "pair": id,
    }
    variables["lacks"] = (("metric", "pair"), _texts([[undefined(metric, preview.pair)] for metric in metrics]))
    pairs = xr.Dataset(variables | _prompts(preview), coordinates)
    of_pair = {name: each.expand_dims(pair=id).transpose("metric", "pair", ...) for name, each in maps.items()}
    return Measurements(pairs=pairs, maps=of_pair, provenance={})


def _prompts(preview: Preview) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Tokens, roles, prompts and first choices of one pair."""
    pair = preview.pair
    length = max(len(prompt.tokens) for prompt in (pair.clean, pair.corrupt))
    found: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name in ("clean", "corrupt"):
        prompt, top = getattr(pair, name), getattr(preview, f"{name}_top")
        found[f"{name}_length"] = (("pair",), np.array([len(prompt.tokens)]))
        found[f"{name}_prompt"] = (("pair",), _texts([_own(pair, name)]))
        found[f"{name}_token"] = (("pair", "token"), _padded(prompt.strings, length))
        found[f"{name}_role"] = (("pair", "token"), _padded(prompt.roles, length))
        found[f"{name}_top"] = (("pair", "rank"), _padded([choice.token for choice in top], CHOICES))
        probs = [choice.prob for choice in top] + [np.nan] * (CHOICES - len(top))
        found[f"{name}_top_prob"] = (("pair", "rank"), np.array([probs]))
        ids = [choice.id for choice in top] + [NO_TOKEN] * (CHOICES - len(top))
        found[f"{name}_top_id"] = (("pair", "rank"), np.array([ids]))
    found["corrupt_position"] = (("pair", "token"), _paired_with(pair, length))
    found["answer_length"] = (("pair",), np.array([max(map(len, pair.answers))]))
    found["answer_id"] = (("pair",), np.array([_first_token(preview)]))
    found["answer"] = (("pair",), _texts([spelled(pair.pair.answer)]))
    found["foil"] = (("pair",), _texts([spelled(pair.pair.foil)]))
    found["notes"] = (("pair",), _texts(["\n".join(pair.notes)]))
    return found


def _first_token(preview: Preview) -> int:
    """The answer's first token; of a set, of the text that the clean run's first choice begins, if it does any."""
    firsts = [tokens[0] for tokens in preview.pair.answers]
    return next((choice.id for choice in preview.clean_top[:1] if choice.id in firsts), firsts[0])


def _own(pair: TokenPair, name: str) -> str:
    """A prompt as the user wrote it, without a chat template; noise corrupts the clean one. "" where there is none."""
    return getattr(pair.pair, name) or ("" if pair.alone else pair.pair.clean)


def _paired_with(pair: TokenPair, length: int) -> np.ndarray:
    """The corrupt prompt's position that each position of the clean one is paired with; −1 for none."""
    found = np.full((1, length), -1)
    for here, there in pair.slots:
        found[0, here] = there
    return found


def _padded(texts: Sequence[str], length: int) -> np.ndarray:
    return np.array([[*texts, *[""] * (length - len(texts))]], dtype=object)


def _texts(values: Sequence[Any]) -> np.ndarray:
    # Objects: numpy's own texts are of one width, and lose a NUL at their end.
    return np.array(values, dtype=object)
