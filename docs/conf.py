"""The site: ``make docs``. Sphinx reads Markdown by MyST; nothing is fetched while it builds."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import softlab  # noqa: E402  from this repository, whatever is installed

gc.set_threshold(200_000)  # trees of 126 pages stay; searching them for garbage took a quarter

project = "softlab"
author = "the softlab authors"
project_copyright = "2026, the softlab authors"
release = version = softlab.__version__

extensions = ["sphinx.ext.autodoc", "myst_parser", "sphinx_copybutton", "prose", "generated"]
exclude_patterns = ["_build"]
if tags.has("small"):  # noqa: F821  Sphinx's own: a trial of the site, without what takes long
    exclude_patterns += ["findings.md", "gallery"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
needs_sphinx = "9.0"

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # of prose: no script, no font, no network

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_use_unqualified_type_names = True
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
add_module_names = False

nitpicky = True
# Other projects' names have no pages here, and looking them up would need the network.
nitpick_ignore_regex = [("py:.*", r"(?!softlab\b).*")]
# Nor have those within softlab that a signature mentions and no user calls.
nitpick_ignore_regex += [
    ("py:.*", r"softlab\.(?:\w+\.)+(?:_\w+|[A-Z]|Array|Compact|Draws|Cells|Unrolled)")
]

html_theme = "furo"
html_title = "softlab"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
