"""Measure npllm against transformers and llama.cpp in alternating rounds; the results of docs/performance.md.

    python tools/bench/bench_peers.py SCRATCH --prepare               fill SCRATCH with 22 GB of weights, once
    python tools/bench/bench_peers.py SCRATCH                         everything, in 10 minutes
    python tools/bench/bench_peers.py SCRATCH --parts decode,growth   only these parts, a minute or two each
    python tools/bench/bench_peers.py SCRATCH --quick                 dry run with a tiny model

It prints each ratio beside its goal. The results go into docs/performance.json (--into FILE) after each part, in place
of that part's earlier ones; --resume skips the parts that the file has. When a part fails, the others go on, and the
exit code is 1. `python tools/bench/performance_page.py` then updates the page. transformers needs the [oracle] extra,
llama.cpp the [peers] extra; a peer that is not installed is skipped. --prepare may run on a busy machine, the
measurements may not.

All peers run the same random weights in the shapes of Phi-3-mini (4 layers and the head; all 32 layers if memory
allows) and the default model. "plain" is npllm without its compiled loops (kernels=False). Each side is a process
(tools/bench/bench_worker.py) that stays alive; a round calls them one after the other. OPENBLAS_*, OMP_*, MKL_* and
NPLLM_THREADS are unset, and every side uses all cores. The speed of a shared machine changes from minute to minute, so
only the ratios within a run are meaningful.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from performance_page import goals, goals_table, loops_table

from npllm.apps import speed
from npllm.devices.memory import available_bytes

TOOLS = Path(__file__).parent
RESULTS = TOOLS.parents[1] / "docs" / "performance.json"
SETTINGS = {"rounds": 7, "context": 64, "tokens": 16, "prefill": 512, "prefill_rounds": 3, "long": 4000, "cached": 100}
QUICK = {"rounds": 2, "context": 8, "tokens": 3, "prefill": 16, "prefill_rounds": 1, "long": 32, "cached": 4}
PASS = 9  # tokens of a pass over a few: one, and 8 drafted
PROMPTS = 8  # at once
NEEDED = {"npllm": (), "transformers": ("torch", "transformers"), "llama.cpp": ("xllamacpp", "gguf")}
PROMPT = "Write a very long email apologizing to Sarah for the tragic gardening mishap. Explain how it happened."
# A repetitive text, for prompt lookup.
LIST = "Repeat this list exactly:\n" + "".join(
    f"{n}. The {colour} bird sat on the {tree} tree and sang a long song.\n"
    for n, (colour, tree) in enumerate([("red", "oak"), ("blue", "elm"), ("green", "ash"), ("white", "fir")], 1)
)
REPEATING = LIST + "\n" + LIST + "\nRepeat this list exactly:\n"

Call: TypeAlias = Callable[[], dict[str, Any]]


class Which(NamedTuple):
    """What a side runs."""

    kind: str  # the peer
    model: str | None  # None: the default model
    dtype: str
    kernels: bool = True  # False, for npllm: NumPy's functions in place of the compiled loops

    def load(self, side: "Side") -> dict[str, Any]:
        return side.ask("load", model=self.model, dtype=self.dtype, **({} if self.kernels else {"kernels": False}))


class Side:
    """A process that measures, and its name in the tables."""

    def __init__(self, name: str, kind: str, environment: Mapping[str, str]) -> None:
        self.name = name
        command = [sys.executable, str(TOOLS / "bench_worker.py"), kind]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.loaded: dict[str, Any] = {}
        self.log = (Path(environment["NPLLM_BENCH_LOGS"]) / f"{name.replace(' ', '-')}.log").open("w")
        self.process = subprocess.Popen(command, env=environment, **(pipes | {"stderr": self.log}))

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """The answer to a request."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("the process has no pipes")
        try:
            self.process.stdin.write(json.dumps({"do": do} | request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        answer = json.loads(line) if line else {"error": f"it ended; see {self.log.name}"}
        if "error" in answer:
            raise RuntimeError(f"{self.name}, {do}: {answer['error']}")
        return answer

    def end(self) -> None:
        """End the process and free its memory, even if it is still busy after an interrupt."""
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.log.close()


class Bench:
    """What all parts share: the settings, the files, the peers."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.scratch, self.quick = args.scratch, args.quick
        self.settings = dict(QUICK if args.quick else SETTINGS)
        self.settings |= {name: getattr(args, name) for name in ("rounds", "tokens") if getattr(args, name)}
        self.peers = [name for name in args.sides.split(",") if available(name)]
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OPENBLAS_", "OMP_", "MKL_", "GOTO_", "NPLLM_THREADS"))
        }
        if args.threads:
            for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "NPLLM_THREADS", "NPLLM_BENCH_THREADS"):
                self.environment[name] = str(args.threads)
        self.environment["NPLLM_BENCH_LOGS"] = str(self.scratch)
        self.environment["PYTHONPATH"] = os.pathsep.join([str(TOOLS.parents[1]), os.environ.get("PYTHONPATH", "")])

    def folder(self, layers: int) -> Path:
        return self.scratch / ("tiny" if self.quick else f"phi-3-mini-{layers}")

    def gguf(self, layers: int, kind: str) -> Path:
        return self.folder(layers).with_suffix(f".{kind}.gguf")

    def ids(self, tokens: int) -> list[int]:
        """A prompt for every model: always the same."""
        return [int(i) for i in np.random.default_rng(0).integers(0, 512 if self.quick else 32064, tokens)]

    @contextmanager
    def sides(self, wanted: Mapping[str, Which]) -> Iterator[dict[str, Side]]:
        """Processes by name with their models loaded."""
        started: dict[str, Side] = {}
        try:
            for name, which in wanted.items():
                if which.kind in self.peers:
                    started[name] = Side(name, which.kind, self.environment)
                    started[name].loaded = which.load(started[name])
            yield started
        finally:
            for side in started.values():
                side.end()

    @contextmanager
    def reader(self) -> Iterator[Side]:
        side = Side("reader", "reader", self.environment)
        try:
            side.ask("load")
            yield side
        finally:
            side.end()

    def rounds(self, calls: Mapping[str, Call], rounds: int, warm_up: int = 1) -> dict[str, list[dict[str, Any]]]:
        """The answers of all calls in alternating rounds, without those of the rounds for warming up."""
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
        for number in range(warm_up + rounds):
            for name, call in calls.items():
                time.sleep(0.1)  # the previous side's threads spin for a moment
                answer = call()
                if number >= warm_up:
                    answers[name].append(answer)
        return answers


def available(name: str) -> bool:
    """Whether a peer is installed; prints a line if it is not."""
    if name not in NEEDED:
        raise SystemExit(f"--sides: expected {', '.join(NEEDED)}, got {name}")
    missing = [module for module in NEEDED[name] if importlib.util.find_spec(module) is None]
    if missing:
        print(f"{name} is skipped: pip install {' '.join(missing)}", file=sys.stderr)
    return not missing


def seconds(answers: Sequence[Mapping[str, Any]]) -> list[float]:
    return [answer["seconds"] for answer in answers]


# The parts


def four_layers(bench: Bench) -> dict[str, Which]:
    """All sides, on 4 layers of Phi-3-mini's shapes."""
    folder = str(bench.folder(4))
    wanted = {f"npllm {dtype}": Which("npllm", folder, dtype) for dtype in DTYPES}
    wanted |= {f"transformers {dtype}": Which("transformers", folder, dtype) for dtype in ("float32", "bfloat16")}
    return wanted | {f"llama.cpp {kind}": Which("llama.cpp", str(bench.gguf(4, kind)), kind) for kind in GGUFS}


def default_model() -> dict[str, Which]:
    """All sides, on the default model."""
    wanted = {f"npllm {dtype}": Which("npllm", None, dtype) for dtype in ("auto", "float32")}
    wanted |= plain(wanted, "npllm auto")
    wanted |= {f"transformers {dtype}": Which("transformers", None, dtype) for dtype in ("float32", "bfloat16")}
    return wanted | {"llama.cpp Q4_1": Which("llama.cpp", None, "Q4_1")}


def plain(wanted: Mapping[str, Which], *names: str) -> dict[str, Which]:
    """Sides of these names without compiled loops."""
    return {f"{name}, plain": wanted[name]._replace(kernels=False) for name in names}


def decode(bench: Bench, wanted: Mapping[str, Which], tokens: int) -> dict[str, Any]:
    """Seconds per token of all sides, and the memory bandwidth."""
    ids = bench.ids(bench.settings["context"])
    with bench.sides(wanted) as sides, bench.reader() as reader:
        same = same_model(sides, ids)
        calls = {name: lambda s=side: s.ask("decode", ids=ids, tokens=tokens) for name, side in sides.items()}
        calls["read bandwidth"] = lambda: reader.ask("bandwidth")
        answers = bench.rounds(calls, bench.settings["rounds"])
        bandwidth = [answer["bytes_per_second"] for answer in answers.pop("read bandwidth")]
        rows = {}
        for name, side in sides.items():
            rows[name] = {"seconds": seconds(answers[name])} | side.loaded
            if name.startswith("npllm"):
                rows[name] |= {"read": answers[name][0]["read"]} | side.ask("memory")
        result = {"context": len(ids), "tokens": tokens, "bandwidth": bandwidth, "sides": rows}
        return result | {"same_first_token": same}


def file_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def same_model(sides: Mapping[str, Side], ids: list[int]) -> dict[str, bool]:
    """Whether each side's most likely token is that of npllm in float32: do all have the same weights?"""
    first = {}
    for name, side in sides.items():
        do = {"do": "first", "ids": ids} if name.startswith("llama.cpp") else {"do": "decode", "ids": ids, "tokens": 1}
        first[name] = side.ask(**do)["ids"][:1]
    expected = first.get("npllm float32")
    return {name: token == expected for name, token in first.items()} if expected else {}


def part_decode(bench: Bench) -> dict[str, Any]:
    return decode(bench, four_layers(bench), bench.settings["tokens"]) | {"file_bytes": file_bytes(bench.folder(4))}


def part_default_decode(bench: Bench) -> dict[str, Any]:
    return decode(bench, default_model(), 2 * bench.settings["tokens"])


def part_plain(bench: Bench) -> dict[str, Any]:
    """npllm with its compiled loops and without them."""
    fast = {name: which for name, which in four_layers(bench).items() if which.kind == "npllm"}
    ids, tokens = bench.ids(bench.settings["context"]), max(2, bench.settings["tokens"] // 2)
    with bench.sides(fast | plain(fast, *fast)) as sides:
        calls = {name: lambda s=side: s.ask("decode", ids=ids, tokens=tokens) for name, side in sides.items()}
        answers = bench.rounds(calls, bench.settings["prefill_rounds"])
        return {"sides": {name: {"seconds": seconds(answers[name])} for name in sides}}


def prefill(bench: Bench, wanted: Mapping[str, Which]) -> dict[str, Any]:
    """Seconds per prompt of all sides, and of a bare matrix product with the same number of operations."""
    ids = bench.ids(bench.settings["prefill"])

    def calls(ids: list[int]) -> dict[str, Call]:
        asked = {name: lambda s=side: s.ask("prefill", ids=ids) for name, side in sides.items()}
        return asked | {"np.matmul": lambda: sides["npllm float32"].ask("matmul", tokens=len(ids))}

    with bench.sides(wanted) as sides:
        bench.rounds(calls(ids[:32]), 0)  # a whole prompt would take too long for warming up
        answers = bench.rounds(calls(ids), bench.settings["prefill_rounds"], warm_up=0)
        rows = {name: {"seconds": seconds(found)} for name, found in answers.items()}
        return {"context": len(ids), "flops": answers["np.matmul"][0]["flops"], "sides": rows}


def part_prefill(bench: Bench) -> dict[str, Any]:
    every = four_layers(bench)
    skipped = ("npllm int4", "llama.cpp BF16", "llama.cpp Q4_0")  # for time
    wanted = {name: which for name, which in every.items() if name not in skipped}
    return prefill(bench, wanted | plain(every, "npllm float32"))


def part_default_prefill(bench: Bench) -> dict[str, Any]:
    return prefill(bench, default_model())


def two_models(bench: Bench, calls: Callable[[Side], Mapping[str, Call]]) -> dict[str, Any]:
    """The times of some calls to npllm with a large model in its own bfloat16, and with the default model."""
    wanted = {PHI: Which("npllm", str(bench.folder(4)), "bfloat16"), DEFAULT: Which("npllm", None, "auto")}
    with bench.sides(wanted) as sides:
        answers = {name: bench.rounds(calls(side), bench.settings["rounds"]) for name, side in sides.items()}
    rows = {
        name: {
            call: {"seconds": seconds(found)} | ({"read": found[0]["read"]} if "read" in found[0] else {})
            for call, found in of_side.items()
        }
        for name, of_side in answers.items()
    }
    return {"sides": rows}


def part_few(bench: Bench) -> dict[str, Any]:
    """A pass over one token, and one over a few, as it verifies drafted tokens."""
    ids = bench.ids(bench.settings["context"])
    return two_models(
        bench, lambda side: {str(n): lambda n=n: side.ask("one_pass", ids=ids, tokens=n, repeat=8) for n in (1, PASS)}
    )


def part_growth(bench: Bench) -> dict[str, Any]:
    """Time per token after a short and after a long context."""
    contexts, tokens = (bench.settings["context"], bench.settings["long"]), bench.settings["tokens"]
    ids = bench.ids(bench.settings["long"])
    return two_models(
        bench, lambda side: {str(n): lambda n=n: side.ask("decode", ids=ids[:n], tokens=tokens) for n in contexts}
    )


def part_busy_core(bench: Bench) -> dict[str, Any]:
    """Decoding on a quiet machine, and while another process keeps one core busy, alternately."""
    ids, tokens = bench.ids(bench.settings["context"]), 2 * bench.settings["tokens"]
    with bench.reader() as reader:

        def timed(side: Side, busy: bool) -> dict[str, Any]:
            reader.ask("spin", on=busy)
            try:
                return side.ask("decode", ids=ids, tokens=tokens)
            finally:
                reader.ask("spin", on=False)

        return two_models(
            bench, lambda side: {"quiet": lambda: timed(side, busy=False), "busy": lambda: timed(side, busy=True)}
        )


def part_prompts(bench: Bench) -> dict[str, Any]:
    """Several prompts of different lengths with the default model, together and one after the other."""
    prompts = [bench.ids(bench.settings["context"] - number) for number in range(PROMPTS)]
    request = {"prompts": prompts, "tokens": 4 * bench.settings["tokens"]}
    with bench.sides({DEFAULT: Which("npllm", None, "auto")}) as sides:
        ask = sides[DEFAULT].ask
        calls: dict[str, Call] = {
            "together": lambda: ask("prompts", together=True, **request),
            "in turn": lambda: ask("prompts", together=False, **request),
        }
        answers = bench.rounds(calls, bench.settings["prefill_rounds"])
    same = [a["ids"] == b["ids"] for a, b in zip(*answers.values(), strict=True)]
    rows = {name: {"seconds": seconds(found)} for name, found in answers.items()}
    return {"prompts": PROMPTS, "same": same, "sides": rows}


def part_cache(bench: Bench) -> dict[str, Any]:
    """100 tokens of the default model with and without the KV cache, and with and without prompt lookup."""
    tokens = bench.settings["cached"]
    result: dict[str, Any] = {"tokens": tokens}
    with bench.sides({"npllm": Which("npllm", None, "auto")}) as sides:
        ask = sides["npllm"].ask
        ask("with_and_without_cache", prompt=PROMPT, tokens=1)
        runs = [ask("with_and_without_cache", prompt=PROMPT, tokens=tokens) for _ in range(2)]
        result["cache"] = {name: [run[name] for run in runs] for name in ("with", "without", "same")}
        runs = [ask("lookup", prompt=REPEATING, tokens=tokens, drafted=16) for _ in range(6)][1:]
        result["lookup"] = {name: [run[name] for run in runs] for name in ("with", "without", "same")}
    return result


def part_start(bench: Bench) -> dict[str, Any]:
    """Seconds from the shell to the first token of the default model, with numba and as if it were not installed."""
    run = "from npllm.cli.main import main; sys.exit(main(['generate', 'Hello', '-n', '1']))"
    programs = {"with": f"import sys; {run}", "without": f"import sys; sys.modules['numba'] = None; {run}"}

    def start(program: str) -> dict[str, Any]:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, env=bench.environment, capture_output=True)
        return {"seconds": time.perf_counter() - started}

    calls = {name: lambda p=program: start(p) for name, program in programs.items()}
    answers = bench.rounds(calls, bench.settings["rounds"])  # the warm-up compiles what is not on disk yet
    return {"sides": {name: {"seconds": seconds(found)} for name, found in answers.items()}}


def part_full(bench: Bench) -> dict[str, Any]:
    """All 32 layers in bfloat16: loading, and decoding next to llama.cpp."""
    folder, size = str(bench.folder(32)), file_bytes(bench.folder(32))
    loads = []
    for _ in range(1 if bench.quick else 2):
        fresh = Side("npllm load", "npllm", bench.environment)
        try:
            loads.append(fresh.ask("load_to_first_token", model=folder, dtype="bfloat16", tokens=8))
        finally:
            fresh.end()
    result: dict[str, Any] = {"file_bytes": size, "loads": loads, "sides": {}}
    room = available_bytes()
    if "llama.cpp" not in bench.peers or (room is not None and room < 2.1 * size):
        print("32 layers next to llama.cpp: skipped, not installed or not enough memory", file=sys.stderr)
        return result
    ids, tokens = bench.ids(bench.settings["context"]), max(2, bench.settings["tokens"] // 4)
    peer = Which("llama.cpp", str(bench.gguf(32, "BF16")), "BF16")
    with bench.sides({"npllm bfloat16": Which("npllm", folder, "bfloat16"), "llama.cpp BF16": peer}) as sides:
        calls = {name: lambda s=side: s.ask("decode", ids=ids, tokens=tokens) for name, side in sides.items()}
        answers = bench.rounds(calls, bench.settings["rounds"])
    return result | {"sides": {name: {"seconds": seconds(found)} for name, found in answers.items()}}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "decode": part_decode,
    "default_decode": part_default_decode,
    "plain": part_plain,
    "prefill": part_prefill,
    "default_prefill": part_default_prefill,
    "few": part_few,
    "growth": part_growth,
    "busy_core": part_busy_core,
    "prompts": part_prompts,
    "cache": part_cache,
    "start": part_start,
    "full": part_full,
}
DTYPES = ("float32", "bfloat16", "int8", "int4")
PHI, DEFAULT = "Phi-3-mini shapes, 4 layers, bfloat16", "default model, auto"
GGUFS = ("F32", "BF16", "Q8_0", "Q4_0")
OF_PHI = ("decode", "plain", "prefill", "few", "growth", "busy_core")  # the parts with 4 layers of Phi-3-mini's shapes


# Before and after


def prepare(bench: Bench, part: str) -> None:
    """Write the files that a part needs and that do not exist yet."""
    layers = 32 if part == "full" else 4 if part in OF_PHI else 0
    if not layers:
        return
    folder = bench.folder(layers)
    if not (folder / "tokenizer_config.json").exists():  # written last
        shutil.rmtree(folder, ignore_errors=True)
        preset = ["--preset", "tiny"] if bench.quick else ["--preset", "phi-3-mini", "--layers", str(layers)]
        run_tool(bench, "make_checkpoint.py", *preset, str(folder))
    for kind in {"decode": GGUFS, "prefill": ("F32", "Q8_0"), "full": ("BF16",)}.get(part, ()):
        if "llama.cpp" in bench.peers and not bench.gguf(layers, kind).exists():
            run_tool(bench, "make_gguf.py", str(folder), str(bench.gguf(layers, kind)), "--type", kind)


def run_tool(bench: Bench, tool: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(TOOLS / tool), *arguments], check=True, env=bench.environment)


def machine() -> dict[str, Any]:
    """The processor, cores, memory and operating system."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.processor() or platform.machine()),
        "vectors": [name for name in ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile") if name in flags],
        "cores": speed.cores(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Of Python, and of the packages that take part."""
    names = ("npllm-reference", "numpy", "ml_dtypes", "numba", "torch", "transformers", "xllamacpp")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Measure the parts, write their results, print the goals; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="folder for the weights, which are not deleted")
    parser.add_argument("--into", type=Path, help="results file (default: docs/performance.json)")
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--sides", default=",".join(NEEDED), help="default: %(default)s")
    parser.add_argument("--prepare", action="store_true", help="only write the files in SCRATCH")
    parser.add_argument("--resume", action="store_true", help="skip the parts that the results file has")
    parser.add_argument("--quick", action="store_true", help="dry run with a tiny model; its figures mean nothing")
    parser.add_argument("--provisional", action="store_true", help="mark the results as measured on a busy machine")
    parser.add_argument("--rounds", type=int, help=f"decoding rounds (default: {SETTINGS['rounds']})")
    parser.add_argument("--tokens", type=int, help=f"tokens decoded per round (default: {SETTINGS['tokens']})")
    parser.add_argument("--threads", type=int, help="threads per side (default: all cores)")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := sorted(set(parts) - set(PARTS)):
        raise SystemExit(f"--parts: expected {', '.join(PARTS)}, got {', '.join(unknown)}")
    into = args.into or (args.scratch / "quick.json" if args.quick else RESULTS)
    bench = Bench(args)
    results: dict[str, Any] = json.loads(into.read_text()) if into.exists() else {}
    results |= {
        "provisional": args.provisional or args.quick,
        "command": "python tools/bench/bench_peers.py SCRATCH",
        "machine": machine(),
        "versions": versions(),
        "settings": bench.settings,
    }
    measured = results.setdefault("parts", {})
    failed = []
    for part in parts:
        if args.resume and part in measured:
            continue
        started = time.perf_counter()
        try:
            prepare(bench, part)
            if args.prepare:
                continue
            measured[part] = PARTS[part](bench)
        except Exception as error:  # noqa: BLE001 - the other parts go on
            print(f"{part}: failed: {error!r}", file=sys.stderr)
            failed.append(part)
            continue
        into.write_text(json.dumps(rounded(results), indent=1) + "\n")
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    if not args.prepare:
        print(goals_table(goals(results)), loops_table(results), sep="\n\n")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def rounded(value: Any) -> Any:
    """The value with all floats rounded to four significant digits, to keep the file readable."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
