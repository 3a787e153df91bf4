"""How Sphinx makes the site.

`python tools/docs/build_docs.py` draws the figures first, and takes warnings for errors.
"""

import runpy
from pathlib import Path

project = "npllm"
author = "the npllm authors"
version = release = runpy.run_path(str(Path(__file__).parent.parent / "npllm" / "version.py"))["__version__"]

extensions = ["myst_parser"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"npllm {version}"
html_static_path = ["_static"]
html_css_files = ["npllm.css"]
html_favicon = "_static/npllm.svg"
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
