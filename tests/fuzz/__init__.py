"""Fuzzing: each parser is fed damaged and hostile files, and may only accept them or refuse them in one line.

targets.py   what is fuzzed: for each parser its seeds, how npllm feeds it, and how its files are mutated
mutation.py  the mutations: of JSON trees, of templates by a grammar, of bytes
outcome.py   one run of a parser: fine, or the finding
worker.py    a process that runs inputs, because a parser may hang it or end it
run.py       the driver
corpus/      inputs that were once findings; tests/test_fuzz.py runs them again
coverage.py  the same targets under atheris, which follows the coverage

    PYTHONPATH=tests python -m fuzz.run header --seconds 60
    PYTHONPATH=tests python -m fuzz.run --replay FILE header     # one input, from corpus/ or from a finding

On Linux only: the memory of a run is read from /proc.
"""
