"""Build the site: draw the figures, write the live examples, then run Sphinx. Warnings are errors.

    python tools/docs/build_docs.py [DIR]   into DIR (default: docs/_build/html); open its index.html

Needs `pip install -e '.[docs]'` and the default model.
"""

import sys
from pathlib import Path

import examples
import figures
from sphinx.cmd.build import main as sphinx

DOCS = Path(__file__).parents[2] / "docs"


def main(folder: str = str(DOCS / "_build" / "html")) -> int:
    how = ["-W", "--keep-going", "-q", "-E", "-b", "html"]
    return figures.main([]) or examples.main([]) or sphinx([*how, str(DOCS), folder])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
