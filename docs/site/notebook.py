"""The first tutorial as a notebook for Colab and the like: `python docs/site/notebook.py`, `--check` in CI.

1. The page is read by jupytext, and written as `first-map.ipynb` beside it, without outputs.
2. Links to other pages of this folder cannot hold in a notebook that is opened elsewhere: they are taken out.
3. `--check`: the notebook that is kept is this one, and read back it has the page's cells.
"""

import json
import re
import sys
from pathlib import Path

import jupytext

PAGE = Path(__file__).parents[1] / "tutorials" / "first-map.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
LINK = re.compile(r"\[([^\]]+)\]\((?!https?:)[^)]*\)")
COLAB = {"name": PAGE.stem, "provenance": []}


def cells(notebook) -> list[tuple[str, str]]:
    """Kinds and texts, links taken out."""
    return [(each.cell_type, LINK.sub(r"\1", each.source)) for each in notebook.cells]


def made() -> str:
    """The notebook's text, the same whenever it is made of the same page."""
    notebook = jupytext.read(PAGE, fmt="md:myst")
    for number, (cell, (_, text)) in enumerate(zip(notebook.cells, cells(notebook), strict=True)):
        cell.source, cell.id = text, f"cell-{number}"
        cell.metadata.pop("tags", None)
    notebook.metadata = {
        "colab": COLAB,
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    }
    return json.dumps(json.loads(jupytext.writes(notebook, fmt="ipynb")), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Writes the notebook, or says that it is not what the page would make."""
    text = made()
    if "--check" not in sys.argv:
        NOTEBOOK.write_text(text, encoding="utf-8")
        return
    if not NOTEBOOK.exists() or NOTEBOOK.read_text(encoding="utf-8") != text:
        sys.exit(f"{NOTEBOOK.name} is not what {PAGE.name} makes: python docs/site/notebook.py writes it.")
    kept, page = jupytext.read(NOTEBOOK), jupytext.read(PAGE, fmt="md:myst")
    back = jupytext.reads(jupytext.writes(kept, fmt="md:myst"), fmt="md:myst")
    if not cells(kept) == cells(back) == cells(page):
        sys.exit(f"{NOTEBOOK.name} does not come back as it was.")


if __name__ == "__main__":
    main()
