"""The chapter's measurement on a GPU: 100 tokens with the KV cache and without it, for npllm and for transformers.

    python tools/bench/bench_gpu.py [--device cuda] [--model FOLDER or Hub name] [--tokens 100] [--repeat 3]

Both continue the chapter's prompt greedily in float16. npllm runs with its kernels and without them; transformers runs
its `generate`, if torch and transformers are installed. For Phi-3-mini on a T4 the chapter reports 4.5 s with the cache
and 21.8 s without. The default is npllm's small default model, which the chapter does not time.

It needs a GPU; without one it reports what is missing.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import npllm
from npllm.apps.bench import Run, cache_runs
from npllm.apps.selftest import versions
from npllm.checkpoint.load import load_tokenizer
from npllm.devices.device import pick
from npllm.errors import NpllmError
from npllm.loop import as_ids

PROMPT = "Write a very long email apologizing to Sarah for the tragic gardening mishap. Explain how it happened."


def npllm_runs(args: argparse.Namespace, kernels: bool) -> Iterator[Run]:
    """Timed runs of npllm, alternately with and without the cache."""
    lm = npllm.load(args.model, device=args.device, kernels=kernels)
    return cache_runs(lm, as_ids(lm, PROMPT), args.tokens, args.repeat)


def transformers_runs(args: argparse.Namespace) -> Iterator[Run]:
    """Timed runs of transformers' `generate`, in float16 on the same GPU."""
    import torch
    from transformers import AutoModelForCausalLM

    if not torch.cuda.is_available():
        raise SystemExit("transformers: torch was installed without CUDA, or finds no GPU; install torch for CUDA")
    ids = load_tokenizer(args.model).encode(PROMPT)
    if args.model is None:
        from bench_worker import in_transformers

        model = in_transformers(npllm.load(dtype="float32", kernels=False)).to(torch.float16)
    else:
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float16)
    place = args.device.replace("auto", "cuda")
    model = model.to(place).eval()
    prompt = torch.tensor([ids], device=place)

    def generate(new_tokens: int, use_cache: bool) -> list[int]:
        made = model.generate(
            prompt, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, use_cache=use_cache
        )
        torch.cuda.synchronize()
        return made[0, len(ids) :].tolist()

    generate(1, True)
    for _ in range(args.repeat):
        for use_cache in (True, False):
            started = time.perf_counter()
            made = generate(args.tokens, use_cache)
            yield Run(use_cache, time.perf_counter() - started, 0, made)


def row(name: str, runs: list[Run]) -> str:
    """A line of the table: mean and standard deviation, as %%timeit prints them, and milliseconds per token."""
    cells = []
    for use_cache in (True, False):
        seconds = [run.seconds for run in runs if run.use_cache == use_cache]
        mean, stdev = statistics.mean(seconds), statistics.pstdev(seconds)
        cells.append(f"{mean:8.2f} s ± {stdev:5.2f} {1000 * mean / len(runs[0].ids):8.1f} ms")
    return f"{name:26}{cells[0]:>30}{cells[1]:>30}"


def main() -> int:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda or cuda:1")
    parser.add_argument("--model", help="a folder or a Hub name; by default the embedded model")
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    try:
        place = pick(args.device)
        if place.name == "cpu":
            print("bench_gpu: expected a GPU, got the CPU; npllm bench cache times that", file=sys.stderr)
            return 3
        sides: dict[str, Callable[[], Any]] = {
            "npllm": lambda: npllm_runs(args, kernels=True),
            "npllm, CuPy's own kernels": lambda: npllm_runs(args, kernels=False),
        }
        if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
            sides["transformers"] = lambda: transformers_runs(args)
        for name, text in versions(place).items():
            print(f"{name + ':':9}{text}")
        print(f"{args.tokens} tokens, mean of {args.repeat} runs; and for each token")
        print(f"{'':26}{'with the KV cache':>30}{'without it':>30}")
        for name, runs in sides.items():
            print(row(name, list(runs())), flush=True)
    except NpllmError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
