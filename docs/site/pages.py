"""What a page has on the site and not in its file: generated lists, and links that stay inside the site.

1. `<!-- generated: NAME -->` and `<!-- generated: NAME ARGUMENT -->` become the Markdown of `generated.NAME`.
2. A link to a file of the repository outside `docs/` becomes one to the page that shows that file.
"""

import os
import re
from pathlib import Path, PurePosixPath

import generated

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"^<!-- generated: (\S+)(?: (.*?))? -->$", re.MULTILINE)
LINK = re.compile(r"(\]\()([^)\s]+?)(#[^)\s]*)?(\))")
# Files of the repository that are pages of the site, by the file's path.
SHOWN = {
    "CHANGELOG.md": "reference/changelog",
    "CONTRIBUTING.md": "contributing",
    "benchmarks/README.md": "benchmarks",
    "README.md": "index",
    "docs/README.md": "index",
}


def filled(app, name: str, source: list[str]) -> None:
    """Sphinx's source-read: the text of a page as the site has it."""
    page = PurePosixPath("docs") / f"{name}.md"
    text = inside(source[0], page)
    source[0] = MARK.sub(lambda found: made(found[1], found[2], page), text)


def made(name: str, argument: str | None, page: PurePosixPath) -> str:
    """What a mark stands for: a generated list, or a file of the repository with its links as of this page."""
    if name == "file" and argument:
        return inside((ROOT / argument).read_text(encoding="utf-8"), PurePosixPath(argument))
    maker = getattr(generated, name)
    return maker(argument) if argument else maker()


def inside(text: str, page: PurePosixPath) -> str:
    """The text with links from the root of the pages, where they lead to a page; `page` is where it is written."""

    def moved(found: re.Match[str]) -> str:
        target = found[2]
        if ":" in target or not target:
            return found[0]
        path = os.path.normpath(page.parent / target)
        if path in SHOWN:
            return f"{found[1]}/{SHOWN[path]}.md{found[3] or ''}{found[4]}"
        if page.parts[0] != "docs" and path.startswith("docs/"):
            return f"{found[1]}/{path.removeprefix('docs/')}{found[3] or ''}{found[4]}"
        return found[0]

    return LINK.sub(moved, text)


# What axe finds in the markup of the theme, of Sphinx and of pandas, and what stands there instead.
MENDED = {
    '<p class="caption" role="heading">': '<p class="caption" role="heading" aria-level="2">',
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="All pages">',
    '<aside class="toc-drawer">': '<aside class="toc-drawer" aria-label="On this page">',
    "<th></th>": "<td></td>",
    '<th class="head"><p></p></th>': "<td></td>",
    "<pre><span></span>": '<pre tabindex="0"><span></span>',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}
SIGNATURE = re.compile(r"<dl>\n((?:<dd>.*?</dd>\n?)+)</dl>", re.DOTALL)


def mended(app, failed: Exception | None) -> None:
    """Sphinx's build-finished: headings, landmarks and lists as readers of a screen need them."""
    for file in [] if failed else Path(app.outdir).rglob("*.html"):
        text = found = file.read_text(encoding="utf-8")
        for old, new in MENDED.items():
            found = found.replace(old, new)
        found = SIGNATURE.sub(_lines, found)
        if found != text:
            file.write_text(found, encoding="utf-8")


def _lines(found: re.Match[str]) -> str:
    """The parameters of a long signature as lines: a list of definitions without terms is none."""
    lines = found[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">{lines}</span>'
