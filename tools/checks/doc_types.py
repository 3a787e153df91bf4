"""Check the types of the documentation's Python sessions with mypy: they are what readers copy.

    python tools/checks/doc_types.py [PAGE.md ...]   by default README.md and all of docs/

Each page becomes a module in which the statements of its sessions stand on the lines where the page has them, so that
mypy's messages name the lines of the page. The types that the public calls return are checked, too.
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
FLAGS += ["--allow-untyped-defs", "--allow-redefinition"]
FLAGS += [f"--disable-error-code={code}" for code in ("var-annotated", "no-redef", "union-attr")]


# What a call returns depends on its prompt.
RETURNED = """
from typing import Any, Iterator, assert_type
assert_type(npllm.generate(lm, "a", top_k=3), npllm.Generation)
assert_type(npllm.generate(lm, [1, 2], stop="."), npllm.Generation)
assert_type(npllm.generate(lm, np.asarray([1, 2])), npllm.Generation)
assert_type(npllm.generate(lm, ["a", "b"], seed=[1, 2], progress=True), list[npllm.Generation])
assert_type(npllm.generate(lm, [[1, 2], [3]], batch_size=2), list[npllm.Generation])
assert_type(npllm.generate(lm, ("a", [3])), list[npllm.Generation])
assert_type(npllm.stream(lm, "a"), Iterator[str])
assert_type(npllm.stream(lm, ["a"]), Iterator[tuple[int, str]])
assert_type(npllm.steps(lm, [1]), Iterator[npllm.Step])
assert_type(npllm.steps(lm, [[1]], tap=npllm.record({})), Iterator[tuple[int, npllm.Step]])
generator = npllm.pipeline("text-generation", lm, top_k=3)
assert_type(generator("a", seed=1), list[dict[str, Any]])
assert_type(generator([{"role": "user", "content": "a"}]), list[dict[str, Any]])
assert_type(generator(["a", "b"]), list[list[dict[str, Any]]])
npllm.generate(lm, "a", top_kk=3)  # type: ignore[call-overload]
npllm.generate(lm, "a", top_k="3")  # type: ignore[call-overload]
npllm.generate(lm, {"a": 1})  # type: ignore[call-overload]
npllm.forward([1], lm, attention_mask=[1])  # type: ignore[call-arg]
generator("a", seed="1")  # type: ignore[call-overload]
"""


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
        returned = Path(folder) / "returned.py"
        returned.write_text(KNOWN + RETURNED, encoding="utf-8")
        found, errors, status = api.run([*FLAGS, str(returned), *map(str, modules)])
    for path, page in modules.items():
        found = found.replace(str(path), str(page))
    sys.stdout.write(found + errors)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
