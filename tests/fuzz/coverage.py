"""The same targets under atheris, libFuzzer for Python, which keeps the inputs that reach new lines of npllm.

    pip install atheris     # 3.0.0 has wheels for Python 3.11 to 3.13 on Linux
    PYTHONPATH=tests python -m fuzz.coverage gguf -max_total_time=600 [DIR]

What follows the target is libFuzzer's: https://llvm.org/docs/LibFuzzer.html#options. An input that fails, hangs or
takes too much memory ends the run, and is written to the current folder. DIR keeps the inputs from run to run.
"""

import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

with atheris.instrument_imports(include=["npllm"]):
    from .outcome import outcome
    from .targets import TARGETS, seeds


def main() -> None:
    name, *options = sys.argv[1:]
    target, first = TARGETS[name], seeds(name)
    folder = Path(tempfile.mkdtemp())

    def one(data: bytes) -> None:
        kind, text = outcome(name, data, folder)
        if kind:
            raise RuntimeError(f"{kind}: {text}")

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        return target.mutate(random, data if len(data) > 1 else random.choice(first), first)[:most]

    limits = ["-timeout=5", "-rss_limit_mb=3000", "-max_len=200000"]
    atheris.Setup([sys.argv[0], *limits, *options], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
