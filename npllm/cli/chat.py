"""npllm chat: talk with a model."""

import argparse
import io
import sys
from collections.abc import Callable, Generator
from contextlib import closing

from ..apps.chat import Chat
from ..checkpoint.chat_template import CHILD
from ..errors import NotEnoughMemoryError, UsageError
from ..loop import Step
from . import options, report
from .chat_commands import Session, obey
from .history import line_editing
from .turns import read_turn

DESCRIPTION = """\
Talk with a model. The conversation stays in the KV cache: each turn computes
only its new tokens.

/help lists the commands: /reset, /retry, /undo, /system, /save, /load, /exit.
Enclose a text of several lines in \"\"\", or paste it. Ctrl-C stops a reply; at
the prompt it quits, as Ctrl-D does.

From a pipe or a file, each line is a turn. A terminal shows control characters in
a reply as \\u001b; a file or a pipe gets them.
"""
EXAMPLES = """\
examples:
  npllm chat
  npllm chat --system "Answer in one sentence." --temperature 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | npllm chat

environment:
  NPLLM_HISTORY    the file that keeps what was typed; empty: keep nothing
                   (default: chat_history in npllm's cache folder)
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
    interactive = sys.stdin.isatty()
    edited = interactive and sys.stdout is not None and sys.stdout.isatty()
    remember: Callable[[str], None] = line_editing() if edited else lambda turn: None
    CHILD.start()  # which imports jinja2 while the weights are read
    chat = Chat(options.load_writer(args), system, args.cache_dtype)
    session = Session(chat, options.model_name(args.model), how | options.speculation(args, {}) | {"seed": args.seed})
    # utf-8-sig drops a byte order mark. An invalid line must not end the chat: see below.
    sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    if interactive:
        report.note("/help lists the commands, /exit or Ctrl-D quits, Ctrl-C stops a reply")
    while True:
        try:
            turn = read_turn(interactive, remember)
            if turn in (None, ("/exit", ""), ("/quit", "")):
                return 0
            name, text = turn or ("", "")
            reply = obey(session, name, text) if name else chat.reply(text, **session.options())
            if reply is not None and (name or text.strip()):
                answer(session, reply, interactive)
        except (UsageError, NotEnoughMemoryError) as error:
            if not interactive:
                raise
            report.error(str(error))


def answer(session: Session, reply: Generator[Step, None, None], interactive: bool) -> None:
    """Print a reply while it is generated. At a terminal, Ctrl-C stops it."""
    said, finish_reason = "", None
    try:
        with closing(reply):
            for step in reply:
                said, finish_reason = said + step.text, step.finish_reason
                report.write(step.text)
    except KeyboardInterrupt:
        if not interactive:
            raise
    finally:
        if said and not said.endswith("\n"):
            report.write("\n")
    if finish_reason == "length":
        full = len(session.chat.cached_ids) + 1 >= session.chat.lm.config.max_position_embeddings
        report.note(
            "npllm: the model's context is full; /reset begins a new conversation"
            if full
            else f"npllm: the reply was cut off after {session.how['max_new_tokens']} tokens; -n raises the limit"
        )
