"""The documentation site: these pages, with what is generated for them, as HTML that requests nothing from elsewhere.

`make docs` builds it, with every warning an error. A page stays readable where the repository is shown: what the site
adds stands in comments, `<!-- generated: NAME -->`, which `site/generated.py` fills, and links to files of the
repository outside this folder become links to the pages that hold them.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "site"))

import causal_tracing  # noqa: E402
import pages  # noqa: E402 (beside this file)

project = "causal-tracing"
author = "the causal-tracing developers"
copyright = "2026, the causal-tracing developers. Apache-2.0"
release = version = causal_tracing.__version__

extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["_build", "README.md", "site", "**/.ipynb_checkpoints", "**/*.ipynb"]
nitpicky = True
nitpick_ignore_regex = [("py:class", ".*")]  # types in signatures: most are other packages'

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure"]  # blocks with an ellipsis

nb_execution_mode = "force"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress and notes
nb_execution_cache_path = str(HERE / "_build" / "cache")

html_theme = "furo"
html_title = f"causal-tracing {release}"
html_static_path = ["site/static"]
html_favicon = "site/static/icon.svg"
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
maximum_signature_line_length = 90
smartquotes = False
copybutton_exclude = ".linenos, .gp, .go"


def setup(app):
    """Fills pages as they are read; two processes may read them at a time."""
    app.connect("source-read", pages.filled)
    app.connect("build-finished", pages.mended)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
