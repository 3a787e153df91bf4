"""Measure npllm against transformers and llama.cpp in alternating rounds; the results of docs/performance.md.

    python tools/bench/bench_peers.py SCRATCH                         everything: 15 minutes once SCRATCH is filled
    python tools/bench/bench_peers.py SCRATCH --prepare               only fill SCRATCH with 22 GB of weights
    python tools/bench/bench_peers.py SCRATCH --parts decode,growth   measure only these parts
    python tools/bench/bench_peers.py SCRATCH --quick                 dry run with a tiny model

The results are written to docs/performance.json (--into FILE) after each part; --resume skips the parts that the file
already has. `python tools/bench/performance_page.py` then updates the page. transformers needs the [oracle] extra, and
llama.cpp needs `pip install xllamacpp gguf`; a peer that is not installed is skipped. --prepare may run on a busy
machine, the measurements may not.

All peers run the same random weights in the shapes of Phi-3-mini (4 layers and the head; all 32 layers if memory
allows) and the default model. The part `plain` runs npllm with its compiled loops and without (kernels=False). Each
peer is a process (tools/bench/bench_worker.py) that stays alive; a round calls them one after the other. OPENBLAS_*,
OMP_* and MKL_* are unset, and every peer uses all cores. The speed of a shared machine changes from minute to minute,
so only the ratios within a run are meaningful.
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
from typing import Any, NamedTuple

import numpy as np

from npllm.apps import speed
from npllm.devices.memory import available_bytes

TOOLS = Path(__file__).parent
RESULTS = TOOLS.parents[1] / "docs" / "performance.json"
SETTINGS = {"rounds": 7, "context": 64, "tokens": 32, "prefill": 512, "prefill_rounds": 3, "long": 4000, "cached": 100}
QUICK = {"rounds": 2, "context": 8, "tokens": 3, "prefill": 16, "prefill_rounds": 1, "long": 32, "cached": 4}
PASS = 9  # tokens of a pass over a few: one, and 8 drafted
PROMPTS = 8  # at once
NEEDED = {
    "npllm": (),
    "transformers": ("torch", "transformers"),
    "llama.cpp": ("xllamacpp", "gguf"),
}
PROMPT = "Write a very long email apologizing to Sarah for the tragic gardening mishap. Explain how it happened."
# A repetitive text, for prompt lookup.
LIST = "Repeat this list exactly:\n" + "".join(
    f"{n}. The {colour} bird sat on the {tree} tree and sang a long song.\n"
    for n, (colour, tree) in enumerate([("red", "oak"), ("blue", "elm"), ("green", "ash"), ("white", "fir")], 1)
)
REPEATING = LIST + "\n" + LIST + "\nRepeat this list exactly:\n"


class Which(NamedTuple):
    """What a side runs."""

    kind: str  # the peer
    model: str | None  # None: the default model
    dtype: str
    kernels: bool = True  # False, for npllm: NumPy's functions in place of the compiled loops

    def load(self, side: "Side") -> dict[str, Any]:
        more = {} if self.kernels else {"kernels": False}
        return side.ask("load", model=self.model, dtype=self.dtype, **more)


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

    def ids(self, vocabulary: int, tokens: int) -> list[int]:
        return [int(i) for i in np.random.default_rng(0).integers(0, vocabulary, tokens)]

    def phi(self, tokens: int) -> list[int]:
        return self.ids(512 if self.quick else 32064, tokens)

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

    def rounds(self, calls: Mapping[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, list[dict[str, Any]]]:
        """The answers of all calls in alternating rounds; a warm-up round is discarded."""
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in calls}
        for number in range(rounds + 1):
            for name, call in calls.items():
                time.sleep(0.1)  # the previous side's threads spin for a moment
                answer = call()
                if number:
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


def default_model(bench: Bench) -> dict[str, Which]:
    """All sides, on the default model."""
    wanted = {f"npllm {dtype}": Which("npllm", None, dtype) for dtype in ("auto", "float32")}
    wanted |= {f"transformers {dtype}": Which("transformers", None, dtype) for dtype in ("float32", "bfloat16")}
    return wanted | {"llama.cpp Q4_1": Which("llama.cpp", None, "Q4_1")}


def two_models(bench: Bench) -> dict[str, Which]:
    """npllm as most use it: a large model in its own bfloat16, and the default model."""
    return {PHI: Which("npllm", str(bench.folder(4)), "bfloat16"), DEFAULT: Which("npllm", None, "auto")}


def decode(bench: Bench, wanted: Mapping[str, Which], ids: list[int]) -> dict[str, Any]:
    """Seconds per token of all sides, and the memory bandwidth."""
    with bench.sides(wanted) as sides, bench.reader() as reader:
        same = same_model(sides, ids)
        calls = {
            name: lambda s=side: s.ask("decode", ids=ids, tokens=bench.settings["tokens"])
            for name, side in sides.items()
        }
        calls["read bandwidth"] = lambda: reader.ask("bandwidth")
        answers = bench.rounds(calls, bench.settings["rounds"])
        bandwidth = [answer["bytes_per_second"] for answer in answers.pop("read bandwidth")]
        rows = {}
        for name, side in sides.items():
            rows[name] = {"seconds": seconds(answers[name])} | side.loaded
            if name.startswith("npllm"):
                rows[name] |= {"read": answers[name][0]["read"]} | side.ask("memory")
        result = {"context": len(ids), "tokens": bench.settings["tokens"], "bandwidth": bandwidth, "sides": rows}
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
    result = decode(bench, four_layers(bench), bench.phi(bench.settings["context"]))
    return result | {"file_bytes": file_bytes(bench.folder(4))}


def part_plain(bench: Bench) -> dict[str, Any]:
    """npllm with its compiled loops and without them: kernels=False, or no numba."""
    fast = {name: which for name, which in four_layers(bench).items() if which.kind == "npllm"}
    fast |= {"default model, auto": Which("npllm", None, "auto")}
    wanted = fast | {f"{name}, plain": which._replace(kernels=False) for name, which in fast.items()}
    ids, tokens = bench.phi(bench.settings["context"]), max(2, bench.settings["tokens"] // 2)
    with bench.sides(wanted) as sides:
        calls = {name: lambda s=side: s.ask("decode", ids=ids, tokens=tokens) for name, side in sides.items()}
        answers = bench.rounds(calls, bench.settings["prefill_rounds"])
        return {"sides": {name: {"seconds": seconds(answers[name])} for name in sides}}


def part_few(bench: Bench) -> dict[str, Any]:
    """A pass over one token, and one over a few, as it verifies drafted tokens."""
    ids, result = bench.phi(bench.settings["context"]), {}
    with bench.sides(two_models(bench)) as sides:
        for name, side in sides.items():
            calls = {
                str(tokens): lambda n=tokens, s=side: s.ask("one_pass", ids=ids, tokens=n, repeat=8)
                for tokens in (1, PASS)
            }
            answers = bench.rounds(calls, bench.settings["rounds"])
            result[name] = {tokens: {"seconds": seconds(found)} for tokens, found in answers.items()}
    return {"sides": result}


def part_busy_core(bench: Bench) -> dict[str, Any]:
    """Decoding in quiet, and while another process keeps one core busy, alternately."""
    ids, result = bench.phi(bench.settings["context"]), {}
    with bench.sides(two_models(bench)) as sides, bench.reader() as reader:

        def decode(side: Side, busy: bool) -> dict[str, Any]:
            if busy:
                reader.ask("spin", on=True)
            answer = side.ask("decode", ids=ids, tokens=bench.settings["tokens"])
            if busy:
                reader.ask("spin", on=False)
            return answer

        for name, side in sides.items():
            calls = {
                "quiet": lambda s=side: decode(s, busy=False),
                "busy": lambda s=side: decode(s, busy=True),
            }
            answers = bench.rounds(calls, bench.settings["rounds"])
            result[name] = {how: {"seconds": seconds(found)} for how, found in answers.items()}
    return {"sides": result}


def part_prompts(bench: Bench) -> dict[str, Any]:
    """Several prompts of different lengths with the default model, together and one after the other."""
    tokens, context = bench.settings["tokens"], bench.settings["context"]
    prompts = [bench.ids(49152, context - number) for number in range(PROMPTS)]
    with bench.sides({DEFAULT: Which("npllm", None, "auto")}) as sides:
        calls = {
            how: lambda s=side, t=together: s.ask("prompts", prompts=prompts, tokens=tokens, together=t)
            for side in sides.values()
            for how, together in (("together", True), ("in turn", False))
        }
        answers = bench.rounds(calls, bench.settings["prefill_rounds"])
        same = [a["ids"] == b["ids"] for a, b in zip(*answers.values(), strict=True)]
        return {
            "prompts": PROMPTS,
            "same": same,
            "sides": {name: {"seconds": seconds(answers[name])} for name in calls},
        }


def part_start(bench: Bench) -> dict[str, Any]:
    """Seconds from the shell to the first token of the default model, with numba and as if it were not installed."""
    run = "from npllm.cli.main import main; sys.exit(main(['generate', 'Hello', '-n', '1']))"
    programs = {"with": f"import sys; {run}", "without": f"import sys; sys.modules['numba'] = None; {run}"}

    def start(program: str) -> dict[str, Any]:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, env=bench.environment, capture_output=True)
        return {"seconds": time.perf_counter() - started}

    calls = {name: lambda p=program: start(p) for name, program in programs.items()}
    answers = bench.rounds(calls, bench.settings["rounds"])  # what must be compiled is, in the warm-up round
    return {"sides": {name: {"seconds": seconds(found)} for name, found in answers.items()}}


def part_prefill(bench: Bench) -> dict[str, Any]:
    skipped = ("npllm int4", "llama.cpp Q4_0")
    wanted = {name: where for name, where in four_layers(bench).items() if name not in skipped}
    return prefill(bench, wanted, bench.phi(bench.settings["prefill"]))


def prefill(bench: Bench, wanted: Mapping[str, Which], ids: list[int]) -> dict[str, Any]:
    """Seconds per prompt of all sides, and of a bare matrix product with the same number of operations."""
    with bench.sides(wanted) as sides:
        calls = {name: lambda s=side: s.ask("prefill", ids=ids) for name, side in sides.items()}
        calls["np.matmul"] = lambda: sides["npllm float32"].ask("matmul", tokens=len(ids))
        answers = bench.rounds(calls, bench.settings["prefill_rounds"])
        rows = {name: {"seconds": seconds(answers[name])} for name in calls}
        return {"context": len(ids), "flops": answers["np.matmul"][0]["flops"], "sides": rows}


def part_default_decode(bench: Bench) -> dict[str, Any]:
    return decode(bench, default_model(bench), bench.ids(49152, bench.settings["context"]))


def part_default_prefill(bench: Bench) -> dict[str, Any]:
    return prefill(bench, default_model(bench), bench.ids(49152, bench.settings["prefill"]))


def part_cache(bench: Bench) -> dict[str, Any]:
    """100 tokens of the default model with and without the KV cache, and with and without prompt lookup."""
    result: dict[str, Any] = {"tokens": bench.settings["cached"]}
    with bench.sides({"npllm": Which("npllm", None, "auto")}) as sides:
        ask, tokens = sides["npllm"].ask, bench.settings["cached"]
        ask("with_and_without_cache", prompt=PROMPT, tokens=1)
        runs = [ask("with_and_without_cache", prompt=PROMPT, tokens=tokens) for _ in range(2)]
        result["cache"] = {name: [run[name] for run in runs] for name in ("with", "without", "same")}
        try:
            runs = [ask("lookup", prompt=REPEATING, tokens=tokens, drafted=16) for _ in range(4)][1:]
            result["lookup"] = {name: [run[name] for run in runs] for name in ("with", "without", "same")}
        except RuntimeError as error:
            print(f"prompt lookup is skipped: {error}", file=sys.stderr)
    return result


def part_growth(bench: Bench) -> dict[str, Any]:
    """Time per token after a short and after a long context."""
    short, long = bench.settings["context"], bench.settings["long"]
    result = {}
    with bench.sides(two_models(bench)) as sides:
        for name, side in sides.items():
            ids = bench.phi(long) if name.startswith("Phi") else bench.ids(49152, long)
            ask = {
                str(context): lambda c=context, s=side, i=ids: s.ask(
                    "decode", ids=i[:c], tokens=bench.settings["tokens"] // 2 or 1
                )
                for context in (short, long)
            }
            answers = bench.rounds(ask, bench.settings["rounds"])
            result[name] = {
                context: {"seconds": seconds(found), "read": found[0]["read"]} for context, found in answers.items()
            }
    return {"sides": result}


def part_full(bench: Bench) -> dict[str, Any]:
    """All 32 layers in bfloat16: loading, and decoding against one peer at a time."""
    folder = str(bench.folder(32))
    size = file_bytes(bench.folder(32))
    loads = []
    for _ in range(1 if bench.quick else 3):
        fresh = Side("npllm load", "npllm", bench.environment)
        try:
            loads.append(fresh.ask("load_to_first_token", model=folder, dtype="bfloat16", tokens=8))
        finally:
            fresh.end()
    result: dict[str, Any] = {"file_bytes": size, "loads": loads, "pairs": {}}
    peers = {
        "transformers bfloat16": Which("transformers", folder, "bfloat16"),
        "llama.cpp BF16": Which("llama.cpp", str(bench.gguf(32, "BF16")), "BF16"),
    }
    ids, tokens = bench.phi(bench.settings["context"]), max(2, bench.settings["tokens"] // 4)
    for name, which in peers.items():
        room = available_bytes()
        if which.kind not in bench.peers or (room is not None and room < 2.1 * size):
            print(f"32 layers against {name}: skipped, not installed or not enough memory", file=sys.stderr)
            continue
        with bench.sides({"npllm bfloat16": Which("npllm", folder, "bfloat16"), name: which}) as sides:
            calls = {n: lambda s=side: s.ask("decode", ids=ids, tokens=tokens) for n, side in sides.items()}
            answers = bench.rounds(calls, 3 if not bench.quick else 1)
            result["pairs"][name] = {n: seconds(answers[n]) for n in sides}
    return result


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "decode": part_decode,
    "plain": part_plain,
    "few": part_few,
    "busy_core": part_busy_core,
    "prefill": part_prefill,
    "default_decode": part_default_decode,
    "default_prefill": part_default_prefill,
    "cache": part_cache,
    "growth": part_growth,
    "prompts": part_prompts,
    "start": part_start,
    "full": part_full,
}
DTYPES = ("float32", "bfloat16", "int8", "int4")
PHI, DEFAULT = "Phi-3-mini shapes, 4 layers, bfloat16", "default model, auto"
GGUFS = ("F32", "BF16", "Q8_0", "Q4_0")


# Before and after


def prepare(bench: Bench, parts: Sequence[str]) -> None:
    """Write the weight files that do not exist yet."""
    needed: dict[int, Sequence[str]] = {}
    if {"decode", "prefill", "plain", "few", "busy_core", "growth"} & set(parts):
        needed[4] = GGUFS if {"decode", "prefill"} & set(parts) else ()
    if "full" in parts:
        needed[32] = ("BF16",)
    for layers, kinds in needed.items():
        folder = bench.folder(layers)
        if not (folder / "tokenizer_config.json").exists():  # written last
            shutil.rmtree(folder, ignore_errors=True)
            preset = ["--preset", "tiny"] if bench.quick else ["--preset", "phi-3-mini", "--layers", str(layers)]
            run_tool(bench, "make_checkpoint.py", *preset, str(folder))
        for kind in kinds if "llama.cpp" in bench.peers else ():
            if not bench.gguf(layers, kind).exists():
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


def main() -> None:
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
    prepare(bench, parts)
    if args.prepare:
        return
    print("OPENBLAS_*, OMP_* and MKL_* are unset for all sides", file=sys.stderr)
    results: dict[str, Any] = json.loads(into.read_text()) if into.exists() else {}
    if args.resume:
        parts = [part for part in parts if part not in results.get("parts", {})]
    results |= {
        "provisional": args.provisional or args.quick,
        "command": "python tools/bench/bench_peers.py SCRATCH",
        "machine": machine(),
        "versions": versions(),
        "settings": bench.settings,
    }
    results.setdefault("parts", {})
    for part in parts:
        started = time.perf_counter()
        try:
            results["parts"][part] = PARTS[part](bench)
        except RuntimeError as error:
            print(f"{part}: failed: {error}", file=sys.stderr)
            continue
        into.write_text(json.dumps(rounded(results), indent=1) + "\n")
        print(f"{part}: {time.perf_counter() - started:.0f} s", file=sys.stderr)

    from performance_page import goals, goals_table

    print(goals_table(goals(results)))


def rounded(value: Any) -> Any:
    """The value with all floats rounded to four significant digits, to keep the file readable."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
