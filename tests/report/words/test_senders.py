"""Paths from senders to receivers in words, against maps made by hand: nothing is told that was not measured."""

import re
from typing import Any

import numpy as np
import pytest

import causal_tracing as ct
from causal_tracing.report.words import many_pairs, one_pair
from causal_tracing.report.words.senders import (
    NOT_SHOWN_SENDERS,
    READ_SENDERS,
    hidden_senders,
    senders_not_shown,
    senders_read,
)
from causal_tracing.results.means import mean_maps
from causal_tracing.results.ranked import ranked
from causal_tracing.results.select import select, strongest
from followed import EVERY, RECEIVERS, TABLE, ZEROS, followed
from made import measurements

HIDDEN = (
    "Hidden sender: z 1.1 @ last; by its path to the logits it brings back 2.00 logits, in all 0.75. Its largest paths "
    "of the other sign go to q 2.0 (−1.00), to mlp_out 2 (−0.38)."
)


def changed(sender: int, **values: float) -> Any:
    """The table with other values of one sender, by receiver (spaces as _)."""
    table = np.array(TABLE)
    for name, value in values.items():
        table[sender, [*RECEIVERS].index(name.replace("_at_", " "))] = value
    return table


def said(*tables: Any, **options: Any) -> list[str]:
    made = followed(*tables, **options)
    if len(tables) == 1:
        return [*one_pair.read(made).sentences]
    return [*many_pairs.read(mean_maps(made), made.provenance).sentences]


def hidden(sentences: list[str]) -> list[str]:
    return [each for each in sentences if each.startswith("Hidden")]


def test_the_strongest_paths_of_a_pair_are_told_with_what_the_senders_do_in_all() -> None:
    told = said(TABLE)
    assert (
        "Strongest paths by restoration, in logits: z 1.0 @ last → logits 3.00; z 1.1 @ last → logits 2.00; "
        "z 1.0 @ last → mlp_out 2 1.50; mlp_out 2 @ last → logits −1.25; z 1.1 @ last → q 2.0 −1.00. What these "
        "senders do in all: z 1.0 @ last 5.00; z 1.1 @ last 0.75; mlp_out 2 @ last −1.50."
    ) in told
    assert hidden(told) == [HIDDEN]
    assert not any(f"→ {EVERY}" in each for each in told)


@pytest.mark.parametrize(
    ("values", "tells"),
    [
        ({"logits": 2.0, "every_at_path": 1.01}, False),  # more than half of it
        ({"logits": 2.0, "every_at_path": 0.99}, True),
        ({"logits": 2.0, "every_at_path": -5.0}, True),  # the other sign
        ({"logits": -2.0, "every_at_path": 5.0}, True),
        ({"logits": -2.0, "every_at_path": -1.5}, False),
        ({"logits": 0.49, "every_at_path": 0.0}, False),  # less than 5 % of 10
        ({"logits": 0.51, "every_at_path": 0.0}, True),
        ({"logits": 0.0, "every_at_path": -5.0}, False),
    ],
)
def test_hidden_is_what_its_whole_effect_is_half_of_or_against(values: dict[str, float], tells: bool) -> None:
    told = hidden(said(changed(1, **values)))
    assert (len(told) == 1) == tells
    assert all("z 1.1 @ last" in each for each in told)


def test_those_who_undo_it_have_the_other_sign_and_come_by_size() -> None:
    told = hidden(said(changed(1, logits=-2.0)))
    assert told[0].endswith("of the other sign go to k 2.0 (0.062), to mlp_out 1 (0.031).")
    none = np.abs(changed(1))
    none[1, -1] = -0.5
    assert hidden(said(none))[0].endswith("in all −0.50. None of its paths has the other sign.")


def test_no_sender_is_hidden_where_the_logits_are_no_receiver() -> None:
    receivers = {"q 2.0": 2, "k 2.0": 2, "mlp_out 1": 1, "mlp_out 2": 2, "k 2.1": 2, EVERY: -1}
    told = said(TABLE, receivers=receivers)
    assert hidden(told) == []
    assert any(each.startswith("Strongest paths") for each in told)


def test_the_margin_is_in_no_ranking_no_test_and_no_peak() -> None:
    tables = [np.array(TABLE) * (1 + n / 100) for n in range(9)]
    made = followed(*tables)
    found = select(made, pair="p0")
    assert EVERY not in {row.position for row in strongest(found, 99)}
    assert EVERY not in {cell[-1] for cell in ranked(found, "restoration").cell.values}
    means = ct.Trace(made).evidence("paths")
    peak = means.peak("path")
    assert peak is not None
    assert (peak.sender.item(), peak.receiver.item()) == ("z 1.0 @ last", "logits")
    p = means.cells.restoration_p_adjusted.sel(component="path")
    assert p.sel(receiver=EVERY).isnull().all()
    assert p.sel(receiver="logits").notnull().all()
    assert means.cells.restoration.sel(component="path", receiver=EVERY, sender="z 1.0 @ last").item() == (
        pytest.approx(5 * 1.04)
    )


def test_the_mean_tells_intervals_and_p_of_each_number() -> None:
    random = np.random.default_rng(0)
    tables = [np.where(np.array(ZEROS) == 1, 0, np.array(TABLE) + 0.01 * random.normal(size=(3, 6))) for _ in range(12)]
    told = said(*tables)
    means = ct.Trace(followed(*tables)).evidence("paths").cells.restoration.sel(component="path")
    line = next(each for each in told if each.startswith("Strongest paths"))
    shown = f"{means.sel(sender='z 1.1 @ last', receiver='q 2.0').item():.2f}".replace("-", "−")
    assert re.search(rf"z 1\.1 @ last → q 2\.0 {shown} \[−1\.\d+, −0\.9\d\] p (= 0\.0\d+|< 0\.001)", line)
    (sentence,) = hidden(told)
    assert sentence.startswith("Hidden sender, on average: z 1.1 @ last; by its path to the logits it brings back 2.0")
    assert re.search(r"in all 0\.7\d \[0\.7\d, 0\.7\d\]\. Its largest", sentence)  # the margin is not tested
    made = followed(*tables)
    assert {*NOT_SHOWN_SENDERS} <= {*many_pairs.read(mean_maps(made), made.provenance).caveats}


def test_a_mean_that_may_be_chance_is_not_called_hidden() -> None:
    """As large on average as before, but of another sign in every third pair."""
    tables = [changed(1, logits=-4.0 if n % 3 == 0 else 5.0) for n in range(12)]
    assert hidden(said(*tables)) == []
    assert [each.sender for each in hidden_senders(of_mean(tables), 10.0)] == ["z 1.1 @ last"]


def of_mean(tables: list[Any]) -> Any:
    return select(followed(np.mean(tables, 0))).restoration.sel(component="path")


def test_how_to_read_and_what_is_not_shown_are_said_of_paths_alone() -> None:
    made, other = followed(TABLE), measurements(np.ones((2, 3)), np.ones((2, 3)))
    assert (senders_read(made), senders_not_shown(made)) == ((READ_SENDERS,), NOT_SHOWN_SENDERS)
    assert (senders_read(other), senders_not_shown(other)) == ((), ())
    reading = one_pair.read(made)
    assert READ_SENDERS in reading.how_to_read
    assert {*NOT_SHOWN_SENDERS} <= {*reading.caveats}
    assert HIDDEN in str(ct.Trace(made))
