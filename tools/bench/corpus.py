"""How much faster npllm batch is than a loop of single calls, on ragged records: tokens/s of both, alternating.

    python tools/bench/corpus.py --records 2000 --longest 600 --new 100 --runs 1 --every 8

Tokens are prompt plus generated tokens. The loop is `npllm.generate` in one process with all threads; with `--every K`
it computes every K-th record, since its speed does not depend on the others. Neither time includes loading the model
(with `--engine ray` the command's does).
"""

import argparse
import json
import math
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import npllm


def corpus(lm: npllm.LM, count: int, longest: int, new: int) -> list[dict[str, Any]]:
    """Records of 1 to `longest` tokens; the lengths are log-uniformly distributed."""
    draw, records = random.Random(0), []
    for number in range(count):
        length = int(math.exp(draw.uniform(0, math.log(longest + 0.99))))
        ids = [draw.randrange(lm.config.vocab_size) for _ in range(length)]
        records.append({"id": number, "ids": ids, "max_new_tokens": new})
    return records


def in_a_loop(lm: npllm.LM, records: list[dict[str, Any]]) -> float:
    """Tokens per second, one call for each record."""
    start, tokens = time.perf_counter(), 0
    for record in records:
        made = npllm.generate(lm, record["ids"], max_new_tokens=record["max_new_tokens"])
        tokens += len(record["ids"]) + len(made.ids)
    return tokens / (time.perf_counter() - start)


def batched(model: str, records: list[dict[str, Any]], flags: list[str]) -> float:
    """Tokens per second that the command reports."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in.jsonl"
        source.write_text("".join(json.dumps(record) + "\n" for record in records))
        command = [
            sys.executable,
            "-m",
            "npllm",
            "batch",
            str(source),
            "-o",
            str(Path(name) / "out.jsonl"),
            "-m",
            model,
        ]
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=True)
    found = re.search(r"\((\d+) tokens/s\)", done.stderr)
    if found is None:
        raise SystemExit(done.stderr)
    return float(found[1])


def main() -> None:
    """Print tokens/s for each run, and the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--longest", type=int, default=600)
    parser.add_argument("--new", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--every", type=int, default=1, help="the loop computes every K-th record", metavar="K")
    parser.add_argument("--flags", default="", help="of npllm batch, as one argument: --flags='--workers 1'")
    args = parser.parse_args()
    lm = npllm.load(None if args.model == "default" else args.model)
    records = corpus(lm, args.records, args.longest, args.new)
    in_a_loop(lm, records[:2])  # compiles
    tokens, ratios = sum(len(one["ids"]) for one in records), []
    print(f"{len(records)} records, {tokens} tokens of prompts, up to {args.new} new ones each", flush=True)
    for _ in range(args.runs):
        one, many = in_a_loop(lm, records[:: args.every]), batched(args.model, records, args.flags.split())
        ratios.append(many / one)
        print(f"loop {one:6.0f} tokens/s   batch {many:6.0f} tokens/s   {ratios[-1]:.2f}", flush=True)
    print(f"median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
