"""npllm chat: talk with a model."""

import argparse
import importlib
import io
import sys
from contextlib import closing, suppress
from typing import Any

from ..apps.chat import Chat
from ..checkpoint.chat_template import CHILD
from ..errors import UsageError
from . import options, report

DESCRIPTION = """\
Talk with a model. The conversation stays in the KV cache: each turn computes
only its new tokens.

/reset starts a new conversation, /exit or Ctrl-D quits. Ctrl-C stops a reply; at
the prompt it quits. From a pipe or a file, each line is a turn. A terminal shows
control characters in a reply as \\u001b; a file or a pipe gets them.
"""
EXAMPLES = """\
examples:
  npllm chat
  npllm chat --system "Answer in one sentence." --temperature 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | npllm chat
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--system", metavar="TEXT", help="instructions for how the model should answer")
    options.add_sampling_flags(parser, max_new_tokens=1000)
    options.add_speed_flags(parser)
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until /exit or the end of the input; return the exit code."""
    system = None if args.system is None else options.utf8("--system", args.system)
    how = options.sampling(args)
    options.check_speed(args)
    if not isinstance(sys.stdin, io.TextIOWrapper):
        raise UsageError("stdin is closed: expected the turns of the conversation")
    CHILD.start()  # which imports jinja2 while the weights are read
    chat = Chat(options.load_writer(args), system, args.cache_dtype)
    how |= options.speculation(args, {})
    # utf-8-sig drops a byte order mark. An invalid line must not end the chat: see below.
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    interactive = sys.stdin.isatty()
    if interactive:
        report.note("/reset starts a new conversation, /exit or Ctrl-D quits, Ctrl-C stops a reply")
        with suppress(ImportError):  # not available on Windows
            importlib.import_module("readline")  # gives input() line editing
    while True:
        line = read_line(interactive)
        if line is None or line == "/exit":
            return 0
        if line == "/reset":
            chat.reset()
        elif line.strip():
            # Each turn has its own seed; with a given --seed the conversation is still reproducible.
            seed = None if args.seed is None else args.seed + len(chat.messages)
            try:
                answer(chat, options.utf8("stdin", line), how | {"seed": seed})
            except KeyboardInterrupt:
                if not interactive:
                    raise
            except UsageError as error:
                if not interactive:
                    raise
                report.error(str(error))


def read_line(interactive: bool) -> str | None:
    """The next line of stdin, or None at its end. A terminal gets a prompt, on stdout if that is a terminal too."""
    if interactive and sys.stdout is not None and sys.stdout.isatty():
        try:
            return input("> ")
        except EOFError:
            report.write("\n")
            return None
    if interactive:
        report.note("> ", end="")
    with options.readable_stdin():
        line = sys.stdin.readline()
    return line.removesuffix("\n").removesuffix("\r") if line else None


def answer(chat: Chat, line: str, how: dict[str, Any]) -> None:
    """Print the reply to a turn while it is generated."""
    said, finish_reason = "", None
    try:
        with closing(chat.reply(line, **how)) as reply:
            for step in reply:
                said, finish_reason = said + step.text, step.finish_reason
                report.write(step.text)
    finally:
        if said and not said.endswith("\n"):
            report.write("\n")
    if finish_reason == "length":
        full = len(chat.cached_ids) + 1 >= chat.lm.config.max_position_embeddings
        report.note(
            "npllm: the model's context is full; /reset begins a new conversation"
            if full
            else f"npllm: the reply was cut off after {how['max_new_tokens']} tokens; -n raises the limit"
        )
