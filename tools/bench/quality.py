"""Measure the cost of rounding the weights: the quality table of docs/performance.md.

    python tools/bench/quality.py [--tokens 2000] [--into FILE]

It compares the default model's predictions with 16, 8 and 4-bit weights to those in float32, as
`npllm evaluate TEXTFILE --dtype int8 --against float32` does. The text is the first pages of docs/. No figure depends
on timing. The results go into docs/performance.json; tools/bench/performance_page.py then updates the page.
"""

import argparse
import json
import re
from pathlib import Path

import npllm
from npllm.apps.evaluate import evaluate, joined, reference, summary

DOCS = Path(__file__).parents[2] / "docs"
DTYPES = ("bfloat16", "float16", "int8", "int4")


def text() -> str:
    """The chapter's pages, in order, as one text."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    names = re.search(r":caption: The chapter\n:maxdepth: 1\n\n((?:[a-z-]+\n)+)", index)
    if names is None:
        raise SystemExit(f"{DOCS / 'index.md'}: expected the list of the chapter's pages")
    return "\n".join((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in names[1].split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--into", type=Path, default=DOCS / "performance.json")
    args = parser.parse_args()

    lm = npllm.load(dtype="float32")
    ids = lm.tokenizer.encode(text())[: args.tokens]
    *_, against = reference(lm, ids)
    rows = {}
    for dtype in DTYPES:
        lm = npllm.load(dtype=dtype)
        found = summary(joined(evaluate(lm, ids, against=against)))
        rows[dtype] = {name: value for name, value in found.items() if value is not None}
        print(f"{dtype}: same likeliest token {found['same_top_share']:.2%}, mean KL {found['mean_kl_divergence']:.2g}")
    results = json.loads(args.into.read_text(encoding="utf-8")) if args.into.exists() else {}
    results["quality"] = {
        "tokens": len(ids),
        "text": "the first pages of this site",
        "command": "python tools/bench/quality.py",
        "reference_perplexity": rows[DTYPES[0]]["reference_perplexity"],
        "rows": rows,
    }
    args.into.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
