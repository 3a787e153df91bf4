"""Write the live examples of docs/: parts of the page of `npllm inspect --html`, for the default model.

    python tools/docs/examples.py [DIR]   into DIR (default: docs/_static/examples)

A page shows one with the directive `example`, see docs/extensions/layout.py.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import npllm
from npllm.inspect.look import look
from npllm.inspect.page import page, write_page

FOLDER = Path(__file__).parents[2] / "docs" / "_static" / "examples"
FRANCE = "The capital of France is"
DOG = "The dog chased the squirrel because it"


class Example(NamedTuple):
    """What one example shows."""

    text: str
    only: tuple[str, ...]  # sections of the page
    new_tokens: int = 0  # added by the model
    heads: tuple[tuple[int, int], ...] | None = None  # layers and heads; all


EXAMPLES = {
    "lab": Example(FRANCE, ("tokens", "attention", "lens", "norms"), new_tokens=2),
    "head": Example(FRANCE, ("attention",), heads=((23, 4),)),
    "funnel": Example(FRANCE, ("funnel",)),
    "cache": Example(FRANCE, ("cache",), new_tokens=8),
    "lens": Example(FRANCE, ("lens",)),
    "attention": Example(DOG, ("attention",)),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", metavar="DIR", nargs="?", type=Path, default=FOLDER)
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    lm = npllm.load()
    for name, example in EXAMPLES.items():
        ids = lm.tokenizer.encode(example.text)
        made = npllm.generate(lm, ids, max_new_tokens=example.new_tokens).ids if example.new_tokens else []
        seen = look(lm, [*ids, *made])
        text = page(seen, len(ids), "SmolLM2-135M-Instruct", example.only, example.heads)
        write_page(args.folder / f"{name}.html", text)
    print(f"{args.folder}: {len(EXAMPLES)} examples")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
