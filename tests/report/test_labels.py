"""Numbers as people read them: one rounding of shares, wherever they are told."""

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from causal_tracing.report.labels import number, p_value, percent
from causal_tracing.report.page.forms import part
from causal_tracing.results.select import HIGH, NEARLY_ZERO, pattern
from pages import launched, needs_browser

TOLD = {
    0.0: "0 %", 0.004: "0 %", 0.096: "9.6 %", 0.0988: "9.9 %", 0.09999: "9.9 %", 0.1: "10 %", 0.1049: "10 %",
    0.094: "9 %", 0.496: "49.6 %", 0.49999: "49.9 %", 0.5: "50 %", 0.504: "50 %", 0.494: "49 %", 0.75: "75 %",
    1.08: "108 %", 0.125: "13 %", 0.625: "63 %", 0.005: "1 %",
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.mark.parametrize(("share", "told"), TOLD.items())
def test_a_share_is_told_in_whole_per_cent_and_on_its_side_of_a_threshold(share: float, told: str) -> None:
    assert percent(share) == told
    assert percent(-share) == (f"−{told}" if told != "0 %" else told)


def test_what_is_told_as_a_tenth_or_a_half_counts_as_one() -> None:
    shares = [n / 10_000 for n in range(15_000)]
    for level in (NEARLY_ZERO, HIGH):
        reached = [share for share in shares if percent(share) == f"{100 * level:.0f} %"]
        assert min(reached) == level
    assert pattern(0.0999, 0.0) == "not on the path for this contrast, or masked by self-repair"
    assert pattern(0.1, 0.0) == ""


NUMBERS = (
    (0.0, "0.00"), (-0.0, "0.00"), (2.625, "2.63"), (-2.625, "−2.63"), (2.875, "2.88"), (2.125, "2.13"),
    (12.375, "12.38"), (0.125, "0.13"), (2.5, "2.50"), (2.675, "2.67"), (10.4638, "10.46"), (0.0316, "0.032"),
    (-1e-9, "−1e−09"), (1e20, "100000000000000000000.00"),
)  # fmt: skip


@pytest.mark.parametrize(("value", "told"), NUMBERS)
def test_a_number_between_two_is_told_as_the_larger_one_and_nothing_has_no_sign(value: float, told: str) -> None:
    assert number(value) == told


def test_a_p_below_a_threshold_is_not_told_as_the_threshold() -> None:
    told = {0.0009: "< 0.001", 0.001: "= 0.001", 0.0312: "= 0.031", 0.0494: "= 0.049", 0.0499: "< 0.05", 0.05: "= 0.05"}
    assert {value: p_value(value) for value in told} == told


@needs_browser
def test_the_page_tells_numbers_of_three_digits_as_the_words_do(browser: Browser) -> None:
    page = browser.new_page()
    source = part("page.js")
    made = source[(start := source.index("const signed = (number")) : source.index(";\n", start) + 1]
    values = [sign * n / 128 for n in range(128, 1280) for sign in (1, -1)]  # as bfloat16 has them
    found = page.evaluate(f"(values) => {{ {made} return values.map((value) => signed(value)); }}", values)
    assert [float(each.replace("−", "-")) for each in found] == [
        float(number(each).replace("−", "-")) for each in values
    ]
    page.close()


@needs_browser
def test_the_page_tells_it_as_the_words_do(browser: Browser) -> None:
    page = browser.new_page()
    source = part("page.js")
    start = source.index("const percent = (share) =>")
    made = source[start : source.index("\n  };\n", start) + 5]
    shares = [sign * n / 1000 for n in range(1200) for sign in (1, -1)]
    found = page.evaluate(f"(shares) => {{ {made} return shares.map(percent); }}", shares)
    assert found == [percent(share) for share in shares]
    page.close()
