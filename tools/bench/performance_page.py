"""Write the tables of docs/performance.md from docs/performance.json, the results of bench_peers.py and quality.py.

    python tools/bench/performance_page.py            update the page
    python tools/bench/performance_page.py --check    exit with 1 if the page and the results differ

Each table stands between <!-- begin NAME --> and <!-- end NAME -->; the rest of the page is written by hand. The page's
figure is drawn by tools/docs/figures.py from the same results.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DOCS = Path(__file__).parents[2] / "docs"
PAGE, RESULTS = DOCS / "performance.md", DOCS / "performance.json"
Results = Mapping[str, Any]


class Goal(NamedTuple):
    """A row of the table of goals."""

    what: str
    against: str
    goal: float | None  # None: reported without a goal
    at_most: bool = False
    measured: float | None = None  # None: not measured
    least: float | None = None  # of all rounds
    most: float | None = None
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without a goal or a measurement."""
        if self.goal is None or self.measured is None:
            return None
        return self.measured <= self.goal if self.at_most else self.measured >= self.goal


def ratio(sides: Results, ours: str, theirs: str) -> dict[str, float]:
    """How many times as fast ours is: the ratio of the medians, and the range of the rounds' ratios.

    >>> ratio({"a": {"seconds": [1, 2, 4]}, "b": {"seconds": [2, 2, 12]}}, "a", "b")
    {'measured': 1.0, 'least': 1.0, 'most': 3.0}
    """
    if ours not in sides or theirs not in sides:
        return {}
    a, b = sides[ours]["seconds"], sides[theirs]["seconds"]
    rounds = [y / x for x, y in zip(a, b, strict=True)]
    return {"measured": statistics.median(b) / statistics.median(a), "least": min(rounds), "most": max(rounds)}


def part(results: Results, name: str) -> Results:
    """A part; empty if it was not measured."""
    return results.get("parts", {}).get(name, {})


def sides(results: Results, name: str) -> Results:
    """The sides of a part."""
    return part(results, name).get("sides", {})


def goals(results: Results) -> list[Goal]:
    """All goals with their measurements."""
    phi, default, prompts = sides(results, "decode"), sides(results, "default_decode"), sides(results, "prompts")
    long, default_long = sides(results, "prefill"), sides(results, "default_prefill")
    decodes = (
        ("bfloat16", "llama.cpp BF16", 0.95),
        ("bfloat16", "transformers bfloat16", 1.8),
        ("int8", "llama.cpp Q8_0", 0.75),
        ("int8", "npllm bfloat16", 1.35),
        ("int4", "llama.cpp Q4_0", 0.5),
        ("int4", "npllm int8", 1.15),
        ("float32", "llama.cpp F32", 0.95),
        ("float32", "transformers float32", None),
    )
    peers = (("transformers float32", 6.5), ("transformers bfloat16", 4.0), ("llama.cpp Q4_1", 0.95))
    auto, wide = ("default model prefill, auto", "npllm auto"), ("float32 prefill", "npllm float32")
    return [
        *(Goal("default model decode, auto", peer, goal, **ratio(default, "npllm auto", peer)) for peer, goal in peers),
        *(Goal(f"{dtype} decode", peer, goal, **ratio(phi, f"npllm {dtype}", peer)) for dtype, peer, goal in decodes),
        Goal(
            "32 layers, bfloat16 decode",
            "llama.cpp BF16",
            0.95,
            **ratio(sides(results, "full"), "npllm bfloat16", "llama.cpp BF16"),
        ),
        Goal(auto[0], "transformers float32", 1.1, **ratio(default_long, auto[1], "transformers float32")),
        Goal(wide[0], "np.matmul with the same FLOPs", 0.88, **ratio(long, wide[1], "np.matmul")),
        *of_cache(results),
        *growth(results),
        *of_two_models(results, "few", "a pass over 9 tokens", "a pass over 1", 2.2, ("1", "9")),
        *of_two_models(results, "busy_core", "decode while one core is busy", "none busy", 0.4, ("busy", "quiet")),
        Goal("default model, 8 prompts together", "one after the other", 3.0, **ratio(prompts, "together", "in turn")),
        start(results),
        *memory(results),
    ]


def of_cache(results: Results) -> list[Goal]:
    """100 tokens with prompt lookup, and with and without the cache."""

    def compared(name: str) -> dict[str, float]:
        seconds = {side: {"seconds": times} for side, times in part(results, "cache").get(name, {}).items()}
        return ratio(seconds, "with", "without")

    return [
        Goal("default model, prompt lookup on repetitive text", "without prompt lookup", 2.5, **compared("lookup")),
        Goal("default model, 100 tokens", "without KV cache", None, **compared("cache")),
    ]


def growth(results: Results) -> list[Goal]:
    """How much slower a token is after a long context, relative to the growth of the bytes it reads."""
    lines = []
    for name, contexts in sides(results, "growth").items():
        (short, few), (long, many) = sorted(contexts.items(), key=lambda item: int(item[0]))
        read = sum(many["read"].values()) / sum(few["read"].values())
        ratios = [b / a / read for a, b in zip(few["seconds"], many["seconds"], strict=True)]
        slower = statistics.median(many["seconds"]) / statistics.median(few["seconds"])
        what = f"{name}: time per token after {int(long):,} tokens, relative to {short}"
        against = f"growth of the bytes read, {read:.2f}x"
        lines.append(Goal(what, against, 1.3, True, slower / read, min(ratios), max(ratios)))
    return lines or [Goal("time per token after 4,000 tokens, relative to 64", "growth of the bytes read", 1.3, True)]


def of_two_models(
    results: Results, name: str, what: str, against: str, goal: float, compared: tuple[str, str]
) -> list[Goal]:
    """A ratio for both models."""
    line = Goal(what, against, goal, at_most=compared[0] == "1")
    found = sides(results, name).items()
    return [line._replace(what=f"{model}: {what}", **ratio(times, *compared)) for model, times in found] or [line]


def start(results: Results) -> Goal:
    """How much longer a command takes where numba is installed."""
    found = sides(results, "start")
    line = Goal("npllm generate -n 1, more seconds with numba", "without", 0.6, at_most=True, unit=" s")
    if not found:
        return line
    more = [a - b for a, b in zip(found["with"]["seconds"], found["without"]["seconds"], strict=True)]
    return line._replace(measured=statistics.median(more), least=min(more), most=max(more))


def memory(results: Results) -> list[Goal]:
    """The size of the weights, and the memory and time that loading takes."""
    phi = sides(results, "decode")
    bfloat16, int8, int4 = (phi.get(f"npllm {dtype}") for dtype in ("bfloat16", "int8", "int4"))
    file, loads = part(results, "decode").get("file_bytes"), part(results, "full").get("loads")
    times = [load["first_token_seconds"] for load in loads or ()]
    lines = [
        Goal("bfloat16, peak memory", "its file size", 1.15, at_most=True),
        Goal("int8, size of the weights with scales", "npllm bfloat16", 0.57, at_most=True),
        Goal("int4, bytes per weight", "", 0.65, at_most=True, unit=""),
        Goal("32 layers, bfloat16: load to first token", "", 5.0, at_most=True, unit=" s"),
        Goal("32 layers, bfloat16: resident memory", "", 8.8, at_most=True, unit=" GB"),
    ]
    measured = [
        bfloat16["peak_bytes"] / file if bfloat16 and file else None,
        int8["weight_bytes"] / bfloat16["weight_bytes"] if int8 and bfloat16 else None,
        int4["bytes_per_weight"] if int4 else None,
        statistics.median(times) if times else None,
        max(load["resident_bytes"] for load in loads) / 1e9 if loads else None,
    ]
    lines = [line._replace(measured=value) for line, value in zip(lines, measured, strict=True)]
    if times:
        lines[3] = lines[3]._replace(least=min(times), most=max(times))
    return lines


# The tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(table(["a", "b"], [["1", "2"]]))
    | a | b |
    |---|---|
    | 1 | 2 |
    """
    lines = [head, *rows]
    cells = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([cells[0], "|" + "---|" * len(head), *cells[1:]])


def goals_table(lines: Sequence[Goal]) -> str:
    """The goals and what was measured."""
    rows = []
    for line in lines:
        asked = "none" if line.goal is None else f"{'at most' if line.at_most else 'at least'} {line.goal:g}{line.unit}"
        measured = "not measured" if line.measured is None else f"{line.measured:.2f}{line.unit}"
        between = "" if line.least is None else f"{line.least:.2f} to {line.most:.2f}"
        met = {None: "", True: "yes", False: "**no**"}[line.met]
        rows.append([line.what, line.against, asked, measured, between, met])
    return table(["", "against", "goal", "measured", "range of rounds", "met"], rows)


def loops_table(results: Results) -> str:
    """The times of npllm with compiled loops and without them."""
    whats = {
        "plain": "decode, {}",
        "default_decode": "default model decode, {}",
        "prefill": "prefill, {}",
        "default_prefill": "default model prefill, {}",
    }
    rows = []
    for name, what in whats.items():
        found = sides(results, name)
        for side in found:
            if (other := f"{side}, plain") in found:
                times = [f"{1e3 * statistics.median(found[which]['seconds']):,.1f}" for which in (side, other)]
                faster = f"{ratio(found, side, other)['measured']:.2f}x"
                rows.append([what.format(side.removeprefix("npllm ")), *times, faster])
    head = ["milliseconds", "compiled loops", "NumPy", "times as fast"]
    return table(head, rows) if rows else "Not measured yet."


def decode_table(results: Results, name: str) -> str:
    """Tokens per second, and the share of the memory bandwidth."""
    found = results.get("parts", {}).get(name)
    if not found:
        return "Not measured yet."
    bandwidth = max(found["bandwidth"])
    rows = []
    for side, row in found["sides"].items():
        median = statistics.median(row["seconds"])
        cells = [
            side,
            f"{1 / median:.1f}",
            f"{1e3 * median:.1f}",
            f"{1e3 * min(row['seconds']):.1f} to {1e3 * max(row['seconds']):.1f}",
        ]
        if "read" in row:
            read = sum(row["read"].values())
            cells += [
                f"{read / 1e6:,.0f} MB",
                f"{read / median / 1e9:.1f}",
                f"{read / median / bandwidth:.0%}",
                stored(row),
            ]
        else:
            cells += [""] * 4
        rows.append(cells)
    head = ["", "tokens/s", "ms per token", "range of rounds", "reads per token", "GB/s", "of bandwidth", "weights"]
    return f"{table(head, rows)}\n\nRead bandwidth: {bandwidth / 1e9:.1f} GB/s, measured by a plain `max` on all cores."


def stored(row: Results) -> str:
    """The storage formats of the weights, and the bytes per weight."""
    kinds = ", ".join(f"{name} {count / 1e6:,.0f} MB" for name, count in row["storages"].items() if count > 1e6)
    return f"{kinds}; {row['bytes_per_weight']:.2f} bytes each"


def prefill_table(results: Results, name: str) -> str:
    """Tokens and operations per second of a prefill."""
    found = results.get("parts", {}).get(name)
    if not found:
        return "Not measured yet."
    rows = []
    for side, row in found["sides"].items():
        median = statistics.median(row["seconds"])
        speed = "" if side == "np.matmul" else f"{found['context'] / median:,.0f}"
        between = f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}"
        rows.append([side, speed, f"{median:.2f}", between, f"{found['flops'] / median / 1e9:,.0f}"])
    return table(["", "tokens/s", "seconds", "range of rounds", "GFLOP/s"], rows)


def quality_table(results: Results) -> str:
    """The cost of rounding the weights."""
    found = results.get("quality")
    if not found:
        return "Not measured yet."
    rows = [
        [
            dtype,
            f"{row['perplexity']:.3f}",
            f"{row['mean_kl_divergence']:.2g}",
            f"{row['kl_divergence_99']:.2g}",
            f"{row['max_kl_divergence']:.2g}",
            f"{row['same_top_share']:.2%}",
        ]
        for dtype, row in found["rows"].items()
    ]
    head = ["", "perplexity", "KL, mean (nats)", "99th percentile", "largest", "same likeliest token"]
    text = f"The default model on {found['tokens']:,} tokens of {found['text']}. In float32 its perplexity is"
    return f"{table(head, rows)}\n\n{text} {found['reference_perplexity']:.3f}."


def machine_lines(results: Results) -> str:
    """The machine, the versions and the command."""
    m, versions = results["machine"], results["versions"]
    vectors = f" ({', '.join(m['vectors'])})" if m["vectors"] else ""
    lines = [
        f"- machine: {m['processor']}{vectors}, {m['cores']} cores, {m['memory_bytes'] / 1e9:.0f} GB, {m['system']}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"- command: `{results['command']}`",
    ]
    if results["provisional"]:
        lines.insert(0, "- **provisional**: measured while other programs were running")
    return "\n".join(lines)


TABLES: dict[str, Callable[[Results], str]] = {
    "machine": machine_lines,
    "goals": lambda results: goals_table(goals(results)),
    "loops": loops_table,
    "decode": lambda results: decode_table(results, "decode"),
    "default_decode": lambda results: decode_table(results, "default_decode"),
    "prefill": lambda results: prefill_table(results, "prefill"),
    "default_prefill": lambda results: prefill_table(results, "default_prefill"),
    "quality": quality_table,
}


def filled(page: str, results: Results) -> str:
    """The page with its tables replaced."""
    for name, make in TABLES.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{PAGE}: expected one {begin} and one {end}")
        before, _, rest = page.partition(begin)
        page = f"{before}{begin}\n\n{make(results)}\n\n{end}{rest.partition(end)[2]}"
    return page


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the page and the results differ")
    args = parser.parse_args(argv)
    page = PAGE.read_text(encoding="utf-8")
    made = filled(page, json.loads(RESULTS.read_text(encoding="utf-8")))
    if args.check:
        print(f"{PAGE.name}: {'as in' if page == made else 'not as in'} {RESULTS.name}")
        return int(page != made)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
