"""npllm generate: continue a prompt."""

import argparse
import json
import time
from typing import Any

from ..apps.chat import Chat
from ..cache import CACHE_DTYPES, kv_cache_bytes
from ..checkpoint.chat_template import CHILD
from ..compiled.cpu import path_of
from ..devices.memory import peak_bytes
from ..devices.threads import threads
from ..errors import UsageError
from ..loop import Step, as_ids, steps
from ..text.arguments import whole_number
from . import options, report
from .logprobs import records, write_table

DESCRIPTION = """\
Continue PROMPT. The text is streamed to stdout, everything else goes to stderr.
A terminal shows control characters in it as \\u001b; a file or a pipe gets them.
"""
EXAMPLES = """\
examples:
  npllm generate "The capital of France is"
  npllm generate --chat "What is the capital of France?" --stats
  npllm generate --temperature 0.8 --top-p 0.95 --seed 1 "Once upon a time"
  npllm generate -n 200 < letter.txt > continued.txt
  npllm generate -n 3 --logprobs 2 "The capital of France is"
  npllm generate --prompt-lookup 8 --stats "1, 2, 3, 4, 1, 2, 3, 4, 1, 2,"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_text(parser, "PROMPT")
    parser.add_argument("--chat", action="store_true", help="send PROMPT as a user message, in the model's chat format")
    parser.add_argument("--system", metavar="TEXT", help="with --chat: instructions for how the model should answer")
    parser.add_argument("--no-cache", action="store_true", help="recompute the whole text for each token")
    parser.add_argument("--stats", action="store_true", help="finally show counts, speed and memory")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object: text, prompt_ids, ids, finish_reason, stats"
    )
    parser.add_argument(
        "--logprobs",
        type=int,
        metavar="K",
        help="finally show the log-probability of each new token, and of the K likeliest in its place; 0: only its own",
    )
    options.add_sampling_flags(parser, max_new_tokens=100)
    options.add_speed_flags(parser)
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Generate, print, and return the exit code."""
    prompt = options.read_prompt(args.text)
    if args.system is not None and not args.chat:
        raise UsageError("--system: expected together with --chat: a raw prompt has no system message")
    system = None if args.system is None else options.utf8("--system", args.system)
    how = options.sampling(args) | {"top_logprobs": args.logprobs}
    if args.logprobs is not None:
        whole_number("--logprobs", args.logprobs, 0)
    options.check_speed(args)
    counts: dict[str, int] = {}

    started = time.perf_counter()
    if args.chat:
        CHILD.start()  # which imports jinja2 while the weights are read
    lm = options.load_writer(args)
    how |= {"cache_dtype": args.cache_dtype} | options.speculation(args, counts)
    load_time = time.perf_counter() - started

    ids = Chat(lm, system).ids_with(prompt) if args.chat else as_ids(lm, prompt)
    text, made, times = "", list[Step](), [time.perf_counter()]
    new_tokens = steps(lm, ids, use_cache=not args.no_cache, **how)
    try:
        for step in new_tokens:
            times.append(time.perf_counter())
            made.append(step)
            text += step.text
            finish_reason = step.finish_reason
            if not args.json:
                report.write(step.text)
    except KeyboardInterrupt:
        finish_reason = "interrupted"
    finally:
        if made and not args.json and not text.endswith("\n"):
            report.write("\n")

    tokenizer = None if args.logprobs is None else lm.tokenizer
    capacity = min(len(ids) + args.max_new_tokens, lm.config.max_position_embeddings)
    stats = {
        **report.speed(len(ids), times),
        **report.speculation(len(made), counts),
        "load_time_seconds": load_time,
        "threads": threads(),
        "computed_by": path_of(lm),
        "peak_memory_bytes": peak_bytes(),
        "kv_cache_bytes": kv_cache_bytes(lm.config, capacity, CACHE_DTYPES[args.cache_dtype]),
        "seed": how["seed"],
        "finish_reason": finish_reason,
    }
    if args.json:
        result: dict[str, Any] = {
            "text": text,
            "prompt_ids": ids,
            "ids": [step.id for step in made],
            "finish_reason": finish_reason,
        }
        if tokenizer is not None:
            result["logprobs"] = records(tokenizer, made)
        result["stats"] = stats
        report.write(json.dumps(result, ensure_ascii=not report.writes_all()) + "\n")
    elif tokenizer is not None:
        write_table(tokenizer, made)
    if args.stats:
        report.stats(stats)
    return 130 if finish_reason == "interrupted" else 0
