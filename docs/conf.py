"""Sphinx: the Markdown pages of the repository and the reference of `from app import Yolopard` (`make site`)."""

from app import __version__

project = "Yolopard"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

# The source folder is the repository, so that links between pages work here as they do in the repository.
root_doc = "docs/index"
include_patterns = [
    f"{folder}*.md" for folder in ("", "deploy/", "docs/", "engines/", "loadtest/", "models/demo/", "tests/clients/")
]
source_suffix = {".md": "markdown"}
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_class_signature = "separated"  # `load` makes them
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"Yolopard {__version__}"
html_show_copyright = False
