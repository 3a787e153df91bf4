"""The driver: mutates the seeds of a target for some time, runs each input in a worker, and reports the findings.

    PYTHONPATH=tests python -m fuzz.run header index --seconds 60
    PYTHONPATH=tests python -m fuzz.run header --seed 7 --save DIR      # findings as files
    PYTHONPATH=tests python -m fuzz.run header --replay FILE

An input is a finding if its run raises anything but a refusal of npllm, or one of the wrong class; takes more than 5 s,
or more memory than 4 times its size plus 200 MB; ends the process; or if a message is not one short printable line. The
exit code is 1 if there are findings.

Inputs that give a new message join the seeds: the next mutations start from there.
"""

import argparse
import hashlib
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from . import mutation
from .targets import TARGETS, attacks, seeds, target

LONGEST_RUN = 5.0  # seconds
START = 120.0  # seconds that a worker may take to start, on a busy machine
LARGEST, POOL = 8_000_000, 400  # bytes of a mutated input; number of inputs that mutations start from
TESTS = Path(__file__).parent.parent
CORPUS = TESTS / "fuzz" / "corpus"


class Worker:
    """A process that runs inputs of a target. It is started again when it hangs or ends."""

    def __init__(self, name: str):
        self.name = name
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "fuzz.worker", self.name, self.folder.name]
        paths = os.pathsep.join(str(path) for path in (TESTS, TESTS.parent))  # also where pytest put them on sys.path
        environment = os.environ | {"PYTHONPATH": paths, "NPLLM_CACHE": f"{self.folder.name}/cache"}
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the worker
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
        )
        if self.answer(START) != "ready":
            self.errors.seek(0)
            raise SystemExit(f"the worker for {self.name} did not start: {self.errors.read().decode()[-2000:]}")

    def answer(self, seconds: float) -> str | None:
        """The next line of the worker: None if it takes too long, "" if it has ended.

        Too long is this much time of the processor, or four times as much on the clock: the machine may be busy.
        """
        assert self.process is not None
        assert self.process.stdout is not None
        began, used = time.monotonic(), self.processor_time()
        while time.monotonic() < began + 4 * seconds and self.processor_time() < used + seconds:
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                return self.process.stdout.readline().decode().strip()
        return None

    def processor_time(self) -> float:
        """The seconds that the worker has computed."""
        assert self.process is not None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def run(self, data: bytes) -> tuple[str, str]:
        """The outcome of one input: kind and description, both empty if all is well."""
        if self.process is None:
            self.start()
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(len(data).to_bytes(8, "little") + data)
            self.process.stdin.flush()
            line = self.answer(LONGEST_RUN)
        except BrokenPipeError:
            line = ""
        if line:
            kind, text = json.loads(line)
            if "MemoryError" in text:  # the limit is reached for good: what is left of it may be too little
                self.stop()
            return kind, text
        if line == "":
            code = self.process.wait()
            self.errors.seek(0)
            words = self.errors.read()[-3000:].decode(errors="replace").strip().splitlines()
            self.stop()
            return "death", f"exit code {code}: {words[-1][:300] if words else ''}"
        self.stop()
        return "hang", f"more than {LONGEST_RUN:g} s"

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for stream in (self.process.stdin, self.process.stdout, self.errors):
                assert stream is not None
                stream.close()
            self.folder.cleanup()
            self.process = None


def signature(kind: str, text: str) -> str:
    """What two findings, or two refusals, of the same cause have in common: the text without its values."""
    if kind in ("crash", "message"):  # the class and the place; the fault
        head, _, rest = text.partition(": ")
        return f"{kind} {head} {rest.rpartition(' in ')[2]} {rest[:25]}" if kind == "crash" else f"{kind} {head}"
    return kind + re.sub(r"'[^']*'|\"[^\"]*\"|\[.*?\]|[\d.e+-]+|: got .*", "_", text)[:120]


def smaller(data: bytes) -> Iterator[bytes]:
    """Smaller inputs: JSON without one of its entries, then any without a stretch of bytes."""
    start = 8 if data[:1] not in b"{[" and data[8:9] == b"{" else 0
    tree = mutation.parsed(data[start : start + int.from_bytes(data[:8], "little")] if start else data)

    def paths(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for key, value in [*items][:50]:
            yield (*path, key)
            yield from paths(value, (*path, key))

    def text(tree: Any) -> bytes:
        whole = json.dumps(tree).encode()
        return len(whole).to_bytes(8, "little") + whole if start else whole

    for path in paths(tree) if tree is not None else ():
        copy = json.loads(json.dumps(tree))
        parent = copy
        for key in path[:-1]:
            parent = parent[key]
        value = parent.pop(path[-1])
        yield text(copy)
        if isinstance(value, str | list) and value:
            half = value[: len(value) // 2]
            if isinstance(parent, list):
                parent.insert(path[-1], half)
            else:
                parent[path[-1]] = half
            yield text(copy)
    size = len(data) // 2
    while size:
        for at in range(0, len(data), size):
            yield data[:at] + data[at + size :]
        size //= 2


def minimised(data: bytes, fails: Callable[[bytes], bool], seconds: float) -> bytes:
    """A smaller input that fails likewise, found within some time."""
    end, progress = time.monotonic() + seconds, True
    while progress:
        progress = False
        for one in smaller(data):
            if time.monotonic() > end:
                return data
            if one and len(one) < len(data) and fails(one):
                data, progress = one, True
                break
    return data


def fuzz(name: str, seconds: float, seed: int, save: Path | None, minimise: float) -> int:
    """Fuzz one target; the number of findings."""
    with Worker(name) as worker:
        return explored(worker, Random(f"{seed}{name}"), seconds, save, minimise)


def explored(worker: Worker, random: Random, seconds: float, save: Path | None, minimise: float) -> int:
    """The loop of `fuzz`."""
    name = worker.name
    first = seeds(name)
    corpus = [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]
    pool, known, found, runs = [*first, *corpus], set(), {}, 0
    waiting = [*attacks(name), *first, *corpus]
    worker.run(first[0])
    began = time.monotonic()
    while time.monotonic() < began + seconds:
        if waiting:
            data = waiting.pop()
        elif not 0 < len(data := target(name).mutate(random, random.choice(pool), pool)) <= LARGEST:
            continue
        kind, text = worker.run(data)
        runs += 1
        what = signature(kind, text)
        if what in known:
            continue
        if kind in ("hang", "death") and worker.run(data)[0] != kind:
            continue  # not again: the machine was busy
        known.add(what)
        if not kind:
            pool = [*pool, data] if len(pool) < POOL and len(data) < LARGEST else pool
            continue
        same = lambda one: signature(*worker.run(one)) == what  # noqa: B023, E731
        least = data if len(data) > LARGEST else minimised(data, same, minimise)
        found[what] = least
        print(
            f"{name}: {kind}: {text}\n    {least[:200]!r}{' ...' * (len(least) > 200)} ({len(least)} bytes)", flush=True
        )
        if save is not None:
            (save / name).mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256(least).hexdigest()[:8]
            (save / name / f"{kind}-{digest}").write_bytes(least)
            (save / name / f"{kind}-{digest}.txt").write_text(text + "\n")
    elapsed = time.monotonic() - began
    speed = f"{runs} executions in {elapsed:.0f} s ({runs / elapsed:.0f}/s)"
    print(f"{name}: {speed}, {len(known)} outcomes, {len(found)} findings", flush=True)
    return len(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", help=f"{', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=60, help="for each target (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("FUZZ_SEED", "0")), help="or $FUZZ_SEED")
    parser.add_argument("--save", type=Path, help="a folder for the findings")
    parser.add_argument("--minimise", type=float, default=20, help="seconds to make a finding smaller")
    parser.add_argument("--replay", type=Path, help="run this input alone")
    args = parser.parse_args()
    names = args.targets or [*TARGETS]
    if args.replay is not None:
        with Worker(names[0]) as worker:
            kind, text = worker.run(args.replay.read_bytes())
        print(f"{names[0]}: {kind or 'fine'}: {text}")
        return 1 if kind else 0
    print(f"seed {args.seed}")
    return 1 if sum([fuzz(name, args.seconds, args.seed, args.save, args.minimise) for name in names]) else 0


if __name__ == "__main__":
    sys.exit(main())
