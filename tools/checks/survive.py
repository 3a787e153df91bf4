"""Checks that npllm batch loses no record and computes none twice.

Every record is there once, equal to what it gives alone: after kill -9 at random moments, on a disk that is full for a
while, shuffled, in one process or two, and on Ray with a worker killed.

    python tools/checks/survive.py -m FOLDER --records 2000 --kills 10

Each case starts the command line. Results are compared exactly, so it needs compiled loops (the extra `fast`).
"""

import argparse
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import npllm
from npllm.corpus.records import seed_of

Record = dict[str, Any]
BAD: list[Callable[[int], str]] = [  # lines that cannot be computed, by number
    lambda number: f'{{"id": "b{number}", "prompt": "half a rec',
    lambda number: json.dumps({"id": f"b{number}", "text": "no prompt"}),
    lambda number: json.dumps({"id": f"b{number}", "ids": [7] * 200_000}),  # longer than any context here
    lambda number: json.dumps({"id": f"b{number}", "ids": [7], "temperature": "warm"}),
    lambda number: json.dumps({"id": "r0", "ids": [7, 8]}),  # the id of another record
]


def corpus(lm: npllm.LM, count: int, longest: int, new: int, seed: int = 0) -> list[str]:
    """Lines of ragged records, from 1 to `longest` tokens, every second one drawn at random; one in 40 is bad."""
    draw, lines = random.Random(seed), []
    for number in range(count):
        length = int(math.exp(draw.uniform(0, math.log(longest + 0.99))))
        ids = [draw.randrange(lm.config.vocab_size) for _ in range(length)]
        options = {"max_new_tokens": draw.randint(1, new), "temperature": float(number % 2), "source": number}
        bad = number % 40 == 39
        lines.append(
            BAD[number // 40 % len(BAD)](number) if bad else json.dumps({"id": f"r{number}", "ids": ids} | options)
        )
    return lines


def alone(lm: npllm.LM, lines: list[str]) -> dict[str, Record]:
    """The results of the good records, one by one, by id."""
    found = {}
    for number, line in enumerate(lines):
        if number % 40 != 39:
            record = json.loads(line)
            how = {name: record[name] for name in ("max_new_tokens", "temperature")}
            made = npllm.generate(lm, record["ids"], **how, seed=seed_of(0, record["id"]))
            answer = {"id": record["id"], "source": record["source"], "text": made.text, "ids": made.ids}
            found[record["id"]] = answer | {"finish_reason": made.finish_reason}
    return found


def check(out: Path, expected: dict[str, Record], lines: list[str]) -> None:
    """Raise AssertionError unless the output has every record once, with the expected result or as an error."""
    text = out.read_text()
    assert text.endswith("\n")
    results = [json.loads(line) for line in text.removesuffix("\n").split("\n")]
    good = [one for one in results if "error" not in one]
    assert len(good) == len({one["id"] for one in good}) == len(expected), (len(good), len(expected))
    different = [one["id"] for one in good if one != expected[one["id"]]]
    assert not different, f"{len(different)} results differ from those of their records alone, first {different[0]}"
    bad = sorted(one["line"] for one in results if "error" in one)
    assert bad == [number for number, line in enumerate(lines, 1) if is_bad(line)], "other records failed"


def is_bad(line: str) -> bool:
    """Whether it is a bad line; of two records with the same id, the later one is."""
    return '"source"' not in line


class Command:
    """`npllm batch` on some input."""

    def __init__(self, model: str, input_file: Path, out: Path, *flags: str, limit: int | None = None) -> None:
        """limit : of each file that it writes, in bytes"""
        self.out = out
        arguments = [sys.executable, "-m", "npllm", "batch", str(input_file), "-o", str(out), "-m", model, *flags]
        sizes = None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        self.process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, preexec_fn=sizes)

    def wait(self, code: int) -> str:
        """What it has written to stderr. Raises AssertionError unless it ends with this code."""
        said = self.process.communicate()[1]
        assert self.process.returncode == code, f"expected exit code {code}, got {self.process.returncode}: {said}"
        return said

    def lines(self) -> int:
        """The results so far."""
        return self.out.read_bytes().count(b"\n") if self.out.exists() else 0


def processes_of(parent: int) -> list[int]:
    """The descendants of a process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found += [int(path.parent.name), *processes_of(int(path.parent.name))]
    return found


def killed(start: Callable[[], Command], total: int, kills: int, draw: random.Random) -> str:
    """Kill the command at random moments of its work, start it again, and let it end."""
    at = []
    for number in range(kills):
        command = start()
        goal = total * (number + draw.random()) / (kills + 1)
        while command.lines() < goal and command.process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.2)
        others = processes_of(command.process.pid)
        command.process.kill()
        command.process.wait()  # not communicate(), which would wait for the others: they have its stderr
        command.process.stderr.close()
        at.append(command.lines())
        ended_by = time.monotonic() + 60
        while any(Path(f"/proc/{one}").exists() for one in others):
            assert time.monotonic() < ended_by, "a process goes on after the command was killed"
            time.sleep(0.05)
    start().wait(6)
    return f"killed after {', '.join(map(str, at))} lines"


@contextmanager
def small_disk(folder: Path, size: int) -> Any:
    """A folder on a disk of this size, where this process may mount one; else None."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def full_disk(start: Callable[..., Command], out: Path, size: int, check_out: Callable[[Path], None]) -> str:
    """Let the disk be full in the middle, then not."""
    with small_disk(out.parent / "small", size // 2 // 4096 * 4096) as folder:
        if folder is None:  # a limit on the size of files
            said = start(out, limit=size // 2).wait(2)
        else:
            out = folder / "out.jsonl"
            said = start(out).wait(2)
            subprocess.run(["mount", "-o", f"remount,size={4 * size + 2**20}", folder], check=True)
        assert "cannot be written" in said, said
        half = out.read_bytes()
        assert half.endswith(b"\n"), "half a line is left"
        start(out).wait(6)
        check_out(out)
        kind = "RLIMIT_FSIZE" if folder is None else "a small tmpfs"
        return f"full after {half.count(b'%c' % 10)} lines ({kind})"


def kill_a_worker(command: Command, after: int) -> str:
    """Kill one of Ray's workers with SIGKILL when there are that many results."""
    while command.lines() < after and command.process.poll() is None:
        time.sleep(0.05)
    workers = [one for one in processes_of(command.process.pid) if is_worker(one)]
    assert workers, "there is no worker"
    os.kill(workers[0], signal.SIGKILL)
    at = command.lines()
    command.wait(6)
    return f"a worker killed after {at} lines"


def is_worker(process: int) -> bool:
    """Whether a process is one of Ray's with a model."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::MapWorker")
    except OSError:
        return False


def main() -> None:
    """Run all cases, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-m", "--model", default="default")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--longest", type=int, default=600)
    parser.add_argument("--new", type=int, default=8, help="maximum new tokens of a record")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--cases", default="one,two,killed,full,shuffled,ray")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, cases = Path(name), args.cases.split(",")
        lm = npllm.load(None if args.model == "default" else args.model)
        lines = corpus(lm, args.records, args.longest, args.new)
        began = time.monotonic()
        expected = alone(lm, lines)
        print(f"{'alone':10} {time.monotonic() - began:7.1f} s", flush=True)
        source = folder / "in.jsonl"
        source.write_text("".join(f"{line}\n" for line in lines))

        def start(out: Path, *flags: str, limit: int | None = None) -> Command:
            return Command(args.model, source, out, *flags, limit=limit)

        def checked(out: Path) -> None:
            check(out, expected, lines)

        def run(case: str) -> str:
            out, draw = folder / f"{case}.jsonl", random.Random(case)
            said = ""
            if case in ("one", "two"):
                start(out, "--workers", "1" if case == "one" else "2").wait(6)
            elif case == "killed":
                said = killed(lambda: start(out, "--workers", "2"), len(lines), args.kills, draw)
            elif case == "full":
                size = sum(len(json.dumps(one, ensure_ascii=False).encode()) for one in expected.values())
                return full_disk(start, out, size, checked)
            elif case == "ray":
                said = kill_a_worker(start(out, "--engine", "ray", "--workers", "2"), len(lines) // 20)
            else:
                order = lines[1:]
                draw.shuffle(order)
                shuffled = [lines[0], *order]  # the first of two records with one id stays the first
                other = folder / "shuffled-in.jsonl"
                other.write_text("".join(f"{line}\n" for line in shuffled))
                Command(args.model, other, out).wait(6)
                check(out, expected, shuffled)
                return said
            checked(out)
            return said

        for case in cases:
            began = time.monotonic()
            said = run(case)
            print(f"{case:10} {time.monotonic() - began:7.1f} s  {said}", flush=True)
        print(
            f"every record once, equal to its result alone: {len(expected)} of {len(lines)}, and the bad ones as errors"
        )


if __name__ == "__main__":
    main()
