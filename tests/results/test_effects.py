"""Effects from numbers worked by hand: no model runs here."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import causal_tracing as ct
from causal_tracing.errors import InvalidOption
from causal_tracing.report.words.one_pair import in_words, read
from causal_tracing.results.columns import labelled
from causal_tracing.results.effects import EFFECTS, MASKED, OF_LOGITS, effects, label, require_effect
from causal_tracing.results.select import pattern, strongest
from made import measurements, synthetic, taken_apart


def test_the_definitions():
    found = effects(measurements([[2.5, 1.0]], [[0.5, 3.0]])).sel(metric="logit_diff", pair="p", component="resid_post")
    expected = {
        "total_effect": 2.0,
        "restoration": [1.5, 0.0],
        "disruption": [2.5, 0.0],
        "interaction": [1.0, 0.0],
        "bypass": [-0.5, 2.0],
        "bypass_given_restored": [0.5, 2.0],
        "restored_fraction": [0.75, 0.0],
        "lost_fraction": [1.25, 0.0],  # never clipped
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].values.ravel(), np.ravel(values), err_msg=name)


def test_law_35_the_fraction_is_0_at_corrupt_and_1_at_clean():
    found = effects(measurements([[1.0, 3.0]], [[3.0, 1.0]])).sel(metric="logit_diff")
    np.testing.assert_array_equal(found.restored_fraction.values.ravel(), [0, 1])
    np.testing.assert_array_equal(found.lost_fraction.values.ravel(), [0, 1])


def test_a_total_effect_too_small_leaves_the_fraction_undefined_with_its_reason():
    bound = 1e-3 * np.sqrt(2) / 0.01
    found = effects(measurements([[1.1]], [[1.0]], clean=1 + 0.9 * bound, spread=1e-3)).sel(metric="logit_diff")
    assert np.isnan(found.restored_fraction).all()
    assert found.restoration.item() == pytest.approx(0.1)  # the effect itself is defined
    assert found.status.item() == "ok"
    assert "is not larger than 0.14" in found.fraction_reason.item()
    above = effects(measurements([[1.1]], [[1.0]], clean=1 + 1.1 * bound, spread=1e-3)).sel(metric="logit_diff")
    assert above.restored_fraction.notnull().all()
    assert above.fraction_reason.item() == ""


def test_a_total_effect_of_exactly_zero_is_undefined_even_without_spread():
    found = effects(measurements([[1.0]], [[1.0]], clean=1.0, spread=0.0)).sel(metric="logit_diff")
    assert np.isnan(found.restored_fraction).all()
    assert found.fraction_reason.item()


def test_entropy_is_never_an_effect():
    found = effects(measurements([[2.0]], [[2.0]])).sel(metric="entropy")
    assert found.status.item() == "undefined"
    assert "shown raw" in found.reason.item()
    for name in (name for name in EFFECTS if name in found):
        assert np.isnan(found[name]).all(), name
    assert found.clean.item() == 3.0


def test_a_masked_answer_is_the_reason_with_a_corrupt_prompt_or_without():
    """Of both the log-probability is undefined, and other metrics are not."""
    for corrupt, prompt in ((1.0, "the corrupt prompt"), (np.nan, "")):
        made = measurements([[1.0]], [[1.0]], corrupt=corrupt)
        made.pairs["corrupt_prompt"].values[:] = prompt
        made.pairs["clean"].loc[{"metric": list(OF_LOGITS)}] = np.nan
        reasons = effects(made).reason.sel(pair="p")
        assert {*reasons.sel(metric=list(OF_LOGITS)).values.tolist()} == {MASKED}
        assert reasons.sel(metric="prob").item() == ""
        assert effects(made, metrics=["logit_diff"]).reason.item() == MASKED  # whatever is asked for


def test_every_cell_has_a_status():
    restored = [[2.0, np.nan, 1.0, 2.0, np.nan]]
    flags: dict[str, Any] = {
        "structural_zero": [[0, 0, 1, 0, 0]],
        "cut": [[0, 0, 0, 1, 0]],
        "unpaired": [[0, 0, 0, 0, 1]],
    }
    found = effects(measurements(restored, [[1.0, 1.0, 3.0, 1.0, np.nan]], **flags)).sel(metric="logit_diff")
    assert found.status.values.ravel().tolist() == ["ok", "failed", "structural_zero", "cut", "unpaired"]


def test_a_direction_that_was_not_measured_is_absent():
    both = measurements([[2.0]], [[2.0]])
    one = taken_apart(both.numbers().drop_vars("disrupted"), both.provenance)
    found = effects(one)
    assert {"restoration", "restored_fraction"} <= set(found)
    assert not {"disruption", "interaction", "bypass", "lost_fraction"} & set(found)
    with pytest.raises(InvalidOption, match="no effect 'interaction' in this trace. It has: restoration"):
        require_effect("interaction", found)


@pytest.mark.parametrize("name", ["direct", "indirect", "direct_effect"])
def test_asking_for_direct_shows_what_the_word_could_mean(name: str):
    with pytest.raises(InvalidOption, match=r"(?s)mean different things.*how-to page.*ROME.*Pearl"):
        require_effect(name, effects(measurements([[2.0]], [[2.0]])))


def test_vocabularies_change_labels_only():
    assert label("restoration") == "restoration"
    assert label("restoration", "how-to") == "restoration (direct effect (restoration))"
    assert label("restoration", "rome") == "restoration (indirect effect (IE))"
    assert label("disruption", "pearl") == "disruption (total natural indirect effect)"
    assert label("lost_fraction", "rome") == "lost fraction"
    with pytest.raises(InvalidOption, match="no vocabulary 'freud'"):
        label("restoration", "freud")


def test_a_patch_that_breaks_the_model_is_marked():
    found = measurements([[2.0, 2.0]], [[2.0, 2.0]])
    for metric, values in (("logit_diff", [2.0, 2.0]), ("log_prob", [0.5, 2.0]), ("entropy", [2.0, 2.0])):
        found.numbers()["restored"].loc[{"metric": metric}] = np.array([[[values]]])
    assert effects(found).damage_like.values.ravel().tolist() == [True, False]


@pytest.mark.parametrize(
    ("restored", "lost", "words"),
    [
        (0.9, 0.5, "a bottleneck for this contrast"),
        (0.9, 0.05, "sufficient here, but backed up elsewhere (OR-like)"),
        (-0.05, 0.6, "necessary, but needs partners (AND-like)"),
        (0.02, 0.09, "not on the path for this contrast, or masked by self-repair"),
        (0.8, -0.3, "matters, but its sign depends on the rest: no single number describes it (XOR-like)"),
        (-0.4, -0.2, "opposes the clean answer"),
        (0.3, 0.32, "adds its share, independently of the rest (SUM-like)"),
        (0.3, 0.45, ""),
        (0.49, 0.6, ""),
        (None, 0.6, ""),
    ],
)
def test_patterns_say_what_the_two_fractions_mean_together(restored: float | None, lost: float | None, words: str):
    assert pattern(restored, lost) == words


def test_the_strongest_sites_leave_out_cuts_and_zeros_and_keep_negative_ones():
    found = measurements([[1.5, 9.0, 1.0], [-2.0, 1.1, 2.0]], np.full((2, 3), 2.0), cut=[[0, 1, 0], [0, 0, 0]])
    rows = strongest(effects(found).sel(metric="logit_diff", pair="p"), 3)
    assert [(row.layer, row.position, row.restoration) for row in rows] == [(1, 0, -3.0), (1, 2, 1.0), (0, 0, 0.5)]


def test_the_words_carry_their_numbers():
    restored = [[2.8, 1.0, 1.0], [1.0, 2.6, 1.0], [1.0, 1.0, 2.9]]
    disrupted = [[1.2, 3.0, 3.0], [3.0, 1.4, 3.0], [3.0, 3.0, 1.1]]
    words = in_words(read(measurements(restored, disrupted, cut=[[0, 0, 0], [0, 0, 0], [0, 0, 1]])))
    assert "the clean prompt → yes   against   the corrupt prompt → no" in words
    assert "total effect 2.00 logits (clean 3.00, corrupt 1.00)" in words
    assert (
        "the difference rides most strongly on token 0 (t0) in layer 0 (restoring a layer there brings back 1.80 "
        "logits), on token 1 (t1) in layer 1 (restoring a layer there brings back 1.60 logits), and on the "
        "last token (t2) in layer 2." in words
    )
    assert (
        "Strongest resid_post site: layer 0 at token 0 (t0); restoring it brings back 1.80 logits (90 % of the total "
        "effect); disrupting it takes away 1.80 logits (90 % of the total effect): a bottleneck for this contrast."
        in words
    )
    assert "early layers: subject first token (as usual); middle layers: subject last token (as usual)" in words
    assert "does not say that the site stores a fact" in words
    assert "no interval" in words


def test_early_and_late_are_of_the_model_not_of_what_was_traced():
    values = [[1.5 + n, 1.0, 1.2] for n in range(3)]
    found = measurements(values, values, clean=9.0)
    of_27 = {"layers": 27}
    shown = {**found.maps, "blocks": found.maps["blocks"].assign_coords(layer=[15, 18, 26])}
    said = " ".join(read(replace(found, maps=shown, provenance={**found.provenance, **of_27})).sentences)
    assert "on average over what was traced of each third of the model, middle layers: subject first" in said
    assert "late layers: subject first token (not as usual)" in said
    assert "early layers:" not in said
    unknown = {name: each for name, each in found.provenance.items() if name != "layers"}
    assert "usual picture" in " ".join(read(found).sentences)
    assert "usual picture" not in " ".join(read(replace(found, provenance=unknown)).sentences)


def test_early_and_late_of_many_pairs_are_of_the_model_too():
    made = synthetic(1, layers=3).measurements
    roles = made.maps["blocks"].assign_coords(position=labelled(["subject_first", "subject_last", "last"]))
    for depth, layers, parts in (
        (3, [0, 1, 2], "early middle late"),
        (27, [15, 18, 26], "middle late"),
        (None, [0, 1, 2], ""),
    ):
        shown = replace(
            made, maps={"blocks": roles.assign_coords(layer=layers)}, provenance={**made.provenance, "layers": depth}
        )
        said = ct.Trace(shown).summary().split("Each pair alone")[0]
        assert [part for part in ("early", "middle", "late") if f"{part} layers: " in said] == parts.split()


@pytest.mark.parametrize(
    ("top", "ids", "length", "warned"),
    [
        ("yes", (5, 5), 1, False),  # decoding drops the leading space
        (" yes", (4, 5), 1, True),  # two tokens may decode to one text
        (" ye", (5, 5), 2, False),  # the answer's first token of two
        (" no", (6, 5), 2, True),
        ("yes", None, 1, False),  # the tokens were not kept: what differs in white space alone is not known
        (" no", None, 1, True),
        (" no", None, 2, False),
        (" no", (6, np.nan), 2, False),  # of a run that was begun by a version that did not keep them
    ],
)
def test_a_first_choice_is_the_answer_by_its_token(top, ids, length, warned):
    found = measurements([[1.1]], [[1.0]])
    pairs = found.pairs.assign(answer_length=("pair", [length]), clean_top=(("pair", "rank"), [[top]]))
    if ids:
        pairs = pairs.assign(clean_top_id=(("pair", "rank"), [[ids[0]]]), answer_id=("pair", [ids[1]]))
    said = " ".join(read(replace(found, pairs=pairs)).warnings)
    assert ("first choice is" in said) == warned


def test_the_words_warn():
    found = measurements([[1.1]], [[1.0]], clean=1.001, spread=1e-3, foil="")
    found.numbers()["clean_top"].values[0, 0] = " other"
    found.provenance["spot_checks"]["largest_difference"] = 0.5  # pyright: ignore[reportIndexIssue]
    warnings = " ".join(read(found, metric="log_prob").warnings)
    assert "first choice is ' other', not the answer ' yes'" in warnings
    assert "Fractions are undefined" in warnings
    assert "run again on whole forwards differ by up to 0.5" in warnings
    with pytest.raises(InvalidOption, match="no metric 'log_prop' in this trace. Did you mean 'log_prob'"):
        read(found, metric="log_prop")
