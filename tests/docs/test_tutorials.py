"""Tutorials say no number that their own cells do not assert. Building the site runs them, and a failure ends it."""

import re
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("*.md"))
CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::[^\n]*\n)*)(.*?)^```$", re.M | re.S)
# A number of logits, probability or share: digits behind a point, and no version, head (23.3), or name of a paper.
NUMBER = re.compile(r"(?<![\d.\w])\d+\.\d+(?![\d.])")
HEADS = re.compile(r"\b(?:[Hh]ead\s|[Ff]rom\s|answer:\s|and\s)(?=\d+\.\d\b)\d+\.\d\b(?! logits)")


def prose(text: str) -> str:
    """What is read: no front matter, no code, no addresses."""
    text = re.sub(r"^---\n.*?\n---\n", "", text, flags=re.S)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return HEADS.sub("", re.sub(r"\[arXiv[^\]]*\]\([^)]*\)|\]\([^)]*\)", "", text))


def asserted(text: str) -> str:
    """What the cells that are tagged `assert` have."""
    return "\n".join(code for tags, code in CELL.findall(text) if "assert" in tags)


def test_there_are_six():
    assert [page.stem for page in TUTORIALS] == [
        "explorer", "first-map", "ioi-heads", "many-facts", "read-a-map", "rome",
    ]  # fmt: skip


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_number_that_is_quoted_is_asserted(page: Path):
    text = page.read_text(encoding="utf-8")
    held = {float(number) for number in re.findall(r"\d+\.\d+", asserted(text))}
    for number in NUMBER.findall(prose(text)):
        near = any(abs(float(number) - each) <= 0.051 * (len(number.partition(".")[2]) == 1) + 1e-9 for each in held)
        assert near, f"{number} is said in {page.name}, and no cell asserts it"
    assert "assert " in asserted(text)


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_they_are_notebooks_on_the_demo_model(page: Path):
    text = page.read_text(encoding="utf-8")
    assert text.startswith("---\nfile_format: mystnb\nkernelspec:\n")
    assert set(re.findall(r"ct\.load\(([^)]*)\)", text)) <= {'"demo"', "model"}


def test_what_is_not_asserted_is_seen():
    assert NUMBER.findall(prose("It brings back 9.45 logits, and head 23.3 does.")) == ["9.45"]
    assert asserted("```{code-cell} ipython3\n:tags: [assert]\n\nassert x == 9.45\n```\n").strip() == "assert x == 9.45"
