"""Sphinx settings of the site: `make site` builds it from what convert.py stages."""

import re
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from convert import REPOSITORY, SETTINGS, link_names  # noqa: E402

project = html_title = SETTINGS["DEFAULT"]["repo"]
author = SETTINGS["DEFAULT"]["author"]
version = release = SETTINGS["DEFAULT"]["version"]
project_copyright = author

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.napoleon", "sphinx_design"]
exclude_patterns = [".doctrees"]
default_role = "literal"

nb_execution_mode = "off"  # a page shows the outputs that are stored
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {"options": {"enableMenu": False}}

napoleon_custom_sections = [("Attributes", "params_style")]  # as a list, without looking for a link to each name
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_favicon = "static/icon.svg"
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = False
html_sidebars = {page: [] for page in ("index", "nbs/index", "RESULTS", "figures/README", "CONTRIBUTING", "CHANGELOG", "search")}
html_theme_options = {
    "logo": {"text": project},
    "icon_links": [{"name": "GitHub", "url": REPOSITORY, "icon": "fa-brands fa-github"}],
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
}


def tidy(app, what, name, obj, options, lines):
    """Docstrings write `name: meaning` in one line; numpydoc wants the meaning below, what follows the colon is a type."""
    text = link_names("\n".join(lines), ":{}:")
    text = re.sub(r"(`[^`\n]+`)(\w?)", lambda m: rf"{m[1]}\ {m[2]}" if m[2] else m[1], text)  # a plural: `Dataset`s
    head, *sections = re.split(r"^(?=(?:Parameters|Attributes|Returns|Raises)\n-+$)", text, flags=re.M)
    sections = [re.sub(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*) ?: (.+)", r"\1\n    \2", section, flags=re.M) for section in sections]
    lines[:] = (head + "".join(sections)).split("\n")


def setup(app):
    app.connect("autodoc-process-docstring", tidy, priority=400)  # before napoleon
