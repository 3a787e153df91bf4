"""npllm inspect: what the model does with a prompt, in the terminal or as a page."""

import argparse
import json
import shutil
from collections.abc import Sequence

from ..apps.chat import Chat
from ..apps.fill import MASKS
from ..errors import UsageError
from ..inspect.look import look
from ..inspect.page import check_direction, check_page, page, write_page
from ..inspect.summary import check_choice, finite, summary
from ..inspect.terminal import coloured, plain, report, wants_colour
from ..inspect.trace import parse_ids
from ..lm import LM
from ..loop import as_ids, steps
from ..storage.paths import output_file
from . import options
from . import report as output

DESCRIPTION = """\
Show what the model does with PROMPT in one forward pass: its tokens and their
probabilities, the shape of every value, what each block would predict next, the
attention weights of a head, and the cost. With --html, as a page.
"""
EXAMPLES = """\
examples:
  npllm inspect "The capital of France is"
  npllm inspect "The capital of France is" --layer 5 --head 3
  npllm inspect --chat "What is the capital of France?" -n 20 --html page.html
  npllm inspect --json --ids 504,3575,282,4649,314
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_text(parser, "PROMPT")
    parser.add_argument("--ids", metavar="1,2,3", help="token ids instead of PROMPT; needs no tokenizer")
    parser.add_argument("--chat", action="store_true", help="send PROMPT as a user message, in the model's chat format")
    parser.add_argument(
        "-n",
        "--max-new-tokens",
        type=int,
        default=0,
        metavar="N",
        help="first continue it greedily, by up to N tokens",
    )
    parser.add_argument(
        "--layer", type=int, default=0, metavar="L", help="show the attention of this layer (default: 0)"
    )
    parser.add_argument("--head", type=int, default=0, metavar="N", help="and of this head (default: 0)")
    parser.add_argument(
        "--token",
        type=int,
        metavar="T",
        help="show predictions after this token, or with BERT in its place (default: the last; with BERT, the first"
        " [MASK])",
    )
    parser.add_argument(
        "--top-k", type=int, default=10, metavar="K", help="show the K likeliest next tokens (default: %(default)s)"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print one JSON object with everything in the text form")
    form.add_argument("--html", metavar="FILE", help="write a page for a browser; it needs no network")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Run the pass, print the result or write the page, and return the exit code."""
    if args.ids is not None and (args.text is not None or args.chat):
        raise UsageError(f"--ids: expected without {'--chat' if args.chat else 'PROMPT'}: they are the whole text")
    if args.max_new_tokens < 0:
        raise UsageError(f"-n: expected 0 or more, got {args.max_new_tokens}")
    prompt = options.read_prompt(args.text) if args.ids is None else parse_ids(args.ids, "--ids")
    path = None if args.html is None else output_file(args.html, f"--html {args.html}")
    lm = options.load_model(args)
    if path is not None:
        check_direction(lm)
    ids = Chat(lm).ids_with(str(prompt)) if args.chat else as_ids(lm, prompt)
    prompt_length = len(ids)
    if args.max_new_tokens:
        ids = [*ids, *(step.id for step in steps(lm, ids, max_new_tokens=args.max_new_tokens))]
    token = default_token(lm, ids) if args.token is None else args.token
    check_choice(lm, ids, args.layer, args.head, token, args.top_k)
    if path is not None:
        check_page(lm, ids)
        write_page(path, page(look(lm, ids), prompt_length, options.model_name(args.model)))
        output.note(f"npllm: wrote {args.html} for {len(ids)} tokens")
        return 0
    found = summary(look(lm, ids, str(args.layer)), args.layer, args.head, token, args.top_k)
    if args.json:
        output.write(json.dumps(finite(found), ensure_ascii=not output.writes_all(), allow_nan=False) + "\n")
        return 0
    colour, width = wants_colour(), shutil.get_terminal_size((100, 24)).columns
    lines = report(found, lm, width, colour=colour, ascii_only=not output.writes_all())
    output.write(coloured(lines) if colour else plain(lines), styled=colour)
    return 0


def default_token(lm: LM, ids: Sequence[int]) -> int:
    """The token whose predictions are shown: for a masked language model the first mask, if there is one; or the last.

    BERT's last token is [SEP], in whose place it predicts nothing of interest.
    """
    masks = []
    if lm.config.bidirectional and lm.tokenizer is not None:
        masks = [lm.tokenizer.backend.token_to_id(name) for name in MASKS]
    return next((position for position, token in enumerate(ids) if token in masks), len(ids) - 1)
