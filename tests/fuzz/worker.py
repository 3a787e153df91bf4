"""A process that runs the inputs on its stdin, each as 8 bytes of length and the data; answers on stdout, in lines."""

import json
import os
import resource
import sys
from pathlib import Path

MOST_MEMORY = 3 * 2**30  # of address space; an allocation beyond it fails


def main(name: str, folder: str) -> None:
    os.environ |= {"OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}
    stdin, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else writes to stdout
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    from .outcome import outcome  # after the limits: it imports NumPy
    from .targets import seeds

    outcome(name, seeds(name)[0], Path(folder))  # imports and caches, which are not the inputs'
    print("ready", file=answers, flush=True)
    while length := int.from_bytes(stdin.read(8), "little"):
        kind, text = outcome(name, stdin.read(length), Path(folder))
        print(json.dumps([kind, text]), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
