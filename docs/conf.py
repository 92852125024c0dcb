"""Settings of the documentation; ``make docs`` builds it in ``site/``."""

from xsoilsm import __version__

project = "xsoilsm"
author = "xsoilsm maintainers"
release = version = __version__
extensions = ["sphinx.ext.autodoc", "numpydoc", "myst_parser"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist"]
html_theme = "pydata_sphinx_theme"
html_title = f"xsoilsm {release}"
html_show_sourcelink = False
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
autodoc_typehints = "none"
autosummary_generate = False
numpydoc_show_class_members = False
exclude_patterns = ["_build"]
