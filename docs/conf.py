"""How Sphinx makes the site.

`python tools/docs/build_docs.py` draws the figures first, and takes warnings for errors.
"""

import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs" / "extensions"))

project = "npllm"
author = "the npllm authors"
version = release = runpy.run_path(str(ROOT / "npllm" / "version.py"))["__version__"]

extensions = ["myst_parser", "sphinx_copybutton", "mathml", "source_pages", "layout", "api_reference"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_math_renderer = "mathml"
# What is copied can be run: the lines after prompts, without these, or everything if there is no prompt.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .go"

html_theme = "furo"
html_title = f"npllm {version}"
html_static_path = ["_static"]
html_css_files = ["npllm.css"]
html_js_files = [("npllm.js", {"defer": "defer"})]
html_favicon = "_static/npllm.svg"
html_copy_source = False
html_use_index = False
html_show_sphinx = False
html_show_copyright = False
