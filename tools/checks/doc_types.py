"""Check the types of the documentation's Python sessions with mypy: they are what readers copy.

    python tools/checks/doc_types.py [PAGE.md ...]   by default README.md and all of docs/

Each page becomes a module in which the statements of its sessions stand on the lines where the page has them, so that
mypy's messages name the lines of the page.
"""

import doctest
import sys
import tempfile
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[2]
KNOWN = "import numpy as np; import npllm; lm = npllm.load()"  # what each page may use, see docs/index.md
FLAGS = ["--config-file", str(ROOT / "setup.cfg"), "--follow-imports", "silent", "--no-error-summary"]
FLAGS += ["--cache-dir", str(ROOT / ".mypy_cache" / "docs")]
# Sessions are written as one writes them: functions without types, and a name that holds something else further down.
FLAGS += ["--allow-untyped-defs", "--allow-redefinition", "--no-warn-unused-ignores"]
FLAGS += [f"--disable-error-code={code}" for code in ("var-annotated", "no-redef", "union-attr")]


def module(text: str) -> str:
    """The statements of a page's sessions, each on its line of the page; the first line has what is known."""
    lines = [KNOWN] + [""] * text.count("\n")
    for example in doctest.DocTestParser().get_examples(text):
        source = example.source.splitlines()
        lines[example.lineno : example.lineno + len(source)] = source
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """mypy's exit code. Its messages go to stdout, with the names of the pages."""
    pages = [Path(name) for name in arguments] or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    with tempfile.TemporaryDirectory() as folder:
        modules = {Path(folder) / f"page_{page.stem.replace('-', '_')}.py": page for page in pages}
        for path, page in modules.items():
            path.write_text(module(page.read_text(encoding="utf-8")), encoding="utf-8")
        found, errors, status = api.run([*FLAGS, *map(str, modules)])
    for path, page in modules.items():
        found = found.replace(str(path), str(page))
    sys.stdout.write(found + errors)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
