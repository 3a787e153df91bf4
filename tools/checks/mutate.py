"""Check that the tests notice bugs: plant the one-line bugs ("mutants") of tests/mutants/ and run the tests they name.

    python tools/checks/mutate.py              all mutants
    python tools/checks/mutate.py -k rope      those with "rope" in their module or description
    python tools/checks/mutate.py --check      run nothing: does each mutant still fit the source and the tests?

tests/mutants/storage.packed.toml holds the mutants of npllm/storage/packed.py, and so on. A file that is not Python is
named at the top of its .toml: file = "cuda/matvec.cu". An entry:

    [[mutant]]
    bug = "bias missing"                                  what is wrong with the mutant
    old = "return y if bias is None else y + bias"        must occur exactly once in the module
    new = "return y"
    tests = ["test_linear.py::test_it_is_the_loop[numpy]"]    in tests/; at least one must fail

Mutants are planted in a copy of the repository. Without a mutant, the named tests must pass. Prints a table; exits
with 1 if a mutant survives, that is, if its tests pass.

Each pytest run is a fork of this process, which has already imported the slow dependencies but nothing of npllm. Source
files are compiled once, and again where a mutant has changed them. The table has the seconds of each run.

When you add a convention to the code (an order, a sign, a bound), add a mutant that breaks it.
"""

import argparse
import ast
import compileall
import gc
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import NamedTuple

ROOT = Path(__file__).parent.parent.parent
MUTANTS = ROOT / "tests" / "mutants"
COPIED = ("npllm", "tests", "tools", "setup.cfg", "README.md")
KEYS = {"bug", "old", "new", "tests"}
PROCESSES = 3  # some tests wait more than they compute
TIMEOUT = 300  # seconds
IMPORTED = "numpy pytest hypothesis jaxtyping beartype array_api_strict array_api_compat.numpy ml_dtypes tokenizers"
IMPORTED += " safetensors.numpy huggingface_hub jinja2.sandbox tqdm threadpoolctl gguf rich.console"
SETTINGS = {
    "HYPOTHESIS_PROFILE": "mutants",
    "PYTHONDONTWRITEBYTECODE": "1",  # that of one mutant could be used for the next
    "OMP_NUM_THREADS": "1",  # threads of NumPy do not survive a fork
    "NUMBA_DISABLE_JIT": "1",  # to compile a mutant's loops takes half a minute; as plain Python they are tested, too
}


class Mutant(NamedTuple):
    file: str  # relative to npllm/
    bug: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_mutants(folder: Path = MUTANTS) -> list[Mutant]:
    """All mutants of a folder of .toml files, in the order of the file names."""
    mutants = []
    for path in sorted(folder.glob("*.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        file = content.get("file", path.stem.replace(".", "/") + ".py")
        for entry in content["mutant"]:
            if entry.keys() != KEYS:
                raise SystemExit(f"{path}: expected the keys {', '.join(sorted(KEYS))}, got {', '.join(entry)}")
            mutants.append(Mutant(file, entry["bug"], entry["old"], entry["new"], tuple(entry["tests"])))
    return mutants


def problems(mutant: Mutant) -> list[str]:
    """What keeps a mutant from being planted and tested; an empty list if nothing does."""
    path = ROOT / "npllm" / mutant.file
    if not path.is_file():
        return ["there is no such file"]
    found = []
    if (count := path.read_text(encoding="utf-8").count(mutant.old)) != 1:
        found.append(f"occurs {count} times: {mutant.old!r}")
    if mutant.old == mutant.new:
        found.append("old and new are the same")
    if not mutant.tests:
        found.append("names no tests")
    for test in mutant.tests:
        file, _, name = test.partition("::")
        if name.partition("[")[0] not in test_functions(file):
            found.append(f"there is no test {test}")
    return found


@cache
def test_functions(file: str) -> frozenset[str]:
    """The names of the functions in a file of tests/; the ids of parametrized tests are known to pytest only."""
    path = ROOT / "tests" / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def check(mutants: Iterable[Mutant]) -> int:
    """The exit code of --check: 1 if any mutant has a problem."""
    outdated = 0
    for mutant in mutants:
        found = problems(mutant)
        outdated += bool(found)
        for problem in found:
            print(f"{mutant.file}: {mutant.bug}: {problem}")
    print(f"{outdated} mutants to mend" if outdated else "every mutant fits the source and the tests")
    return 1 if outdated else 0


def copy_repository(folder: Path) -> None:
    """Copy what the tests need, with bytecode that Python uses as long as the source has the same hash."""
    folder.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    compileall.compile_dir(folder, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)


def start_tests(folder: Path, tests: Iterable[str]) -> int:
    """The id of a new process that runs these tests in the folder; its output goes to the folder's file "output"."""
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.setpgid(0, 0)
        signal.alarm(TIMEOUT)  # ends the process
        os.chdir(folder)
        output = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.path.insert(0, str(folder))
        # Plain asserts need no compiling. The options of setup.cfg are dropped: checking every shape takes longer than
        # the tests.
        options = ["-o", "addopts=", "--import-mode=importlib", "--assert=plain", "-x", "-q"]
        # Temporary files of its own: pytest ends with an error if another pytest tidies theirs up while it reads them.
        options += ["-p", "no:cacheprovider", "-p", "no:xdist", f"--basetemp={folder / 'temporary'}"]
        code = importlib.import_module("pytest").main([*options, *(f"tests/{test}" for test in tests)])
    finally:  # the child must never return into the parent's code
        if error := sys.exc_info()[1]:
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def plant(mutant: Mutant, folder: Path) -> None:
    """Put the bug into a copy of the repository."""
    path = folder / "npllm" / mutant.file
    path.write_text(path.read_text(encoding="utf-8").replace(mutant.old, mutant.new), encoding="utf-8")


def wait_for_tests() -> tuple[int, int]:
    """The id of the next process that ends, and its status. Ends what its tests have left running."""
    process, status = os.wait()
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)
    return process, status


def verdict(status: int, folder: Path) -> str:
    """ "killed", or what happened instead."""
    code = os.waitstatus_to_exitcode(status)
    if code == 1:  # tests failed; other codes are errors of pytest, such as a test that does not exist
        return "killed"
    result = "SURVIVED" if code == 0 else f"BROKEN: pytest ended with {code}"
    return f"{result}\n{(folder / 'output').read_text()[-2000:]}"


def judge(mutants: Iterable[Mutant], folders: Iterable[Path]) -> Iterator[tuple[Mutant, str, float]]:
    """Each mutant, its verdict and its seconds, in the order in which the tests end; one at a time in each folder."""
    free, running = list(folders), {}
    waiting = list(reversed(list(mutants)))
    while waiting or running:
        if waiting and free:
            mutant, folder = waiting.pop(), free.pop()
            if found := problems(mutant):
                free.append(folder)
                yield mutant, f"OUTDATED: {'; '.join(found)}", 0.0
            else:
                plant(mutant, folder)
                running[start_tests(folder, mutant.tests)] = mutant, folder, time.monotonic()
            continue
        process, status = wait_for_tests()
        mutant, folder, began = running.pop(process)
        shutil.copy(ROOT / "npllm" / mutant.file, folder / "npllm" / mutant.file)
        free.append(folder)
        yield mutant, verdict(status, folder), time.monotonic() - began


def pass_without_mutants(tests: Iterable[str], folders: Sequence[Path]) -> bool:
    """Whether these tests pass as they are, each in one of the folders; prints the output of those that do not."""
    by_module = [list(group) for _, group in groupby(sorted(tests), key=lambda test: test.partition("::")[0])]
    shares = [[test for group in by_module[start :: len(folders)] for test in group] for start in range(len(folders))]
    running = {start_tests(folder, share): folder for folder, share in zip(folders, shares, strict=True) if share}
    statuses = {running[process]: status for process, status in (wait_for_tests() for _ in range(len(running)))}
    for folder in (folder for folder, status in statuses.items() if status):
        print(f"{(folder / 'output').read_text()}\nThe tests must pass without a mutant.")
    return not any(statuses.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", metavar="WORD", default="", help="only mutants with this word in module or description")
    parser.add_argument("--check", action="store_true", help="only check that each fits the source and the tests")
    args = parser.parse_args()
    word = args.k.lower()
    chosen = [mutant for mutant in read_mutants() if word in f"{mutant.file} {mutant.bug}".lower()]
    if not chosen:
        raise SystemExit(f"-k: expected a word of a mutant's module or description, got {args.k!r}")
    if args.check:
        return check(chosen)
    began = time.monotonic()
    os.environ.update(SETTINGS)
    for name in IMPORTED.split():
        importlib.import_module(name)

    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary, str(number)) for number in range(PROCESSES)]
        for folder in folders:
            copy_repository(folder)
        gc.freeze()  # pytest collects garbage several times, and need not look through all that was imported here
        if not pass_without_mutants({test for mutant in chosen for test in mutant.tests}, folders):
            return 1

        alive = []
        for mutant, result, seconds in judge(chosen, folders):
            line = f"{mutant.file:32}{mutant.bug:64}{seconds:5.1f} s  {result}"
            print(line, flush=True)
            if result != "killed":
                alive.append(line)

    print(f"\n{len(chosen) - len(alive)} of {len(chosen)} mutants killed in {time.monotonic() - began:.0f} s")
    print("\n".join(alive))  # once more at the end: the table is long
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
