"""npllm inspect: what the model does with a prompt, in the terminal or as a page."""

import argparse
import json
import re
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..apps.chat import Chat
from ..devices.device import to_host
from ..errors import UsageError
from ..inspect.attribution import Attribution, attribution
from ..inspect.edits import Edit, edit_tap, edit_text, parse_edits
from ..inspect.heads import head_scores, induction_scores
from ..inspect.lens import shares
from ..inspect.look import Look, look, place_of_answer
from ..inspect.page import check_direction, check_page, page, write_page
from ..inspect.summary import SECTIONS, check_choice, finite, heads_of, sections_of, summary
from ..inspect.tables import coloured, plain, wants_colour
from ..inspect.terminal import report
from ..inspect.tokens import named_token
from ..inspect.trace import parse_ids
from ..inspect.where import attribution_data, head_data, patching_data
from ..lm import LM, forward
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
  npllm inspect "The capital of France is" --only attention --head 5.3,7.1
  npllm inspect "The capital of France is" --only attribution --against " Rome"
  npllm inspect "The capital of France is" --only patching --other "The capital of Italy is"
  npllm inspect "The capital of France is" --only next,lens --without head:23.4
  npllm inspect --json --ids 504,3575,282,4649,314
"""


# The sections of the page, by those of the text.
PAGE = {name: name for name in ("tokens", "lens", "attention", "norms", "cache", "cost")}
PAGE |= {"shapes": "flow", "next": "funnel"}


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
        "--only",
        metavar="SECTIONS",
        help=f"show these sections: of {','.join(SECTIONS)} (default: all but the last three)",
    )
    parser.add_argument("--layer", type=int, metavar="L", help="show the attention of this layer (default: 0)")
    parser.add_argument(
        "--head", default="0", metavar="N", help="and of this head (default: 0); or of several, as LAYER.HEAD: 5.3,7.1"
    )
    parser.add_argument(
        "--without",
        metavar="PARTS",
        help="switch parts off: head:5.3,feedforward:1,attention:2,neuron:1.77; or scale them: head:5.3=0.5",
    )
    parser.add_argument(
        "--answer", metavar="TOKEN", help='attribute the logit of this token, such as " Paris" (default: the likeliest)'
    )
    parser.add_argument("--against", metavar="TOKEN", help="minus that of this token")
    parser.add_argument(
        "--other", metavar="PROMPT", help="a second prompt, for --only patching: what of the first restores its answer"
    )
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
        what = "--chat" if args.chat else "PROMPT"
        raise UsageError(f"--ids: cannot be combined with {what}: the ids are the whole text")
    if args.max_new_tokens < 0:
        raise UsageError(f"-n: expected 0 or more, got {args.max_new_tokens}")
    sections, heads = sections_of(args.only), heads_of(args.head, args.layer)
    edits = [] if args.without is None else parse_edits(args.without)
    page_sections = None if args.only is None or args.html is None else sections_of_page(sections)
    prompt = options.read_prompt(args.text) if args.ids is None else parse_ids(args.ids, "--ids")
    if (args.answer or args.against) is not None and not {"attribution", "patching"} & {*sections}:
        raise UsageError("--answer, --against: need --only attribution or patching")
    if (args.other is None) is ("patching" in sections):
        raise UsageError("--other: a second prompt and --only patching need each other")
    if args.other is not None and edits:
        raise UsageError("--without: cannot be combined with --other")
    path = None if args.html is None else output_file(args.html, f"--html {args.html}", ".html", ".htm")
    lm = options.load_model(args)
    if path is not None:
        with_prefix("--html", lambda: check_direction(lm), "; leave it out, or take --json")
    ids = Chat(lm).ids_with(str(prompt)) if args.chat else as_ids(lm, prompt)
    prompt_length = len(ids)
    tap = with_prefix("--without", lambda: edit_tap(lm, edits))
    if args.max_new_tokens:
        ids = [*ids, *(step.id for step in steps(lm, ids, max_new_tokens=args.max_new_tokens, tap=tap))]
    token = place_of_answer(lm, ids) if args.token is None else args.token
    check_choice(lm, ids, heads, token, args.top_k)
    if path is not None:
        check_page(lm, ids)
        edited = f", edited: {', '.join(map(edit_text, edits))}" if edits else ""
        name = options.model_name(args.model) + edited
        write_page(path, page(look(lm, ids, tap=tap), prompt_length, name, page_sections))
        output.note(f"npllm: wrote {args.html} for {len(ids)} tokens")
        return 0
    layers = {str(layer) for layer, _ in heads}
    seen = look(lm, ids, layers.pop() if len(layers) == 1 and "heads" not in sections else "*", tap)
    found = summary(seen, heads, token, args.top_k, sections)
    if edits:
        add_edits(found, lm, ids, edits)
    if "heads" in sections:
        found["heads"] = head_data(head_scores(lm, seen, induction_scores(lm, tap=tap)))
    if "attribution" in sections:
        found["attribution"] = attribution_data(lm, attributed(args, seen, token, edits))
    if "patching" in sections:
        found["patching"] = patched(args, lm, ids)
    if args.json:
        keys = ["model", "not_finite", "token", "without", *(key for name in sections for key in SECTIONS[name])]
        chosen = finite({key: value for key, value in found.items() if key in keys})
        output.write(json.dumps(chosen, ensure_ascii=not output.writes_all(), allow_nan=False) + "\n")
        return 0
    colour, width = wants_colour(), shutil.get_terminal_size((100, 24)).columns
    lines = report(found, lm, width, sections, colour=colour, ascii_only=not output.writes_all())
    output.write(coloured(lines) if colour else plain(lines), styled=colour)
    return 0


def with_prefix(option: str, call: Callable[[], Any], advice: str = "") -> Any:
    """What a call returns; its UsageError then names the option that it is about."""
    try:
        return call()
    except UsageError as error:
        raise UsageError(f"{option}: {str(error).removeprefix('token: ')}{advice}") from None


def add_edits(found: dict[str, Any], lm: LM, ids: Sequence[int], edits: Sequence[Edit]) -> None:
    """Add the edits, and beside each next token its probability in the model without them."""
    found["without"] = [edit_text(edit) for edit in edits]
    if "next" in found:
        best = np.asarray([one["id"] for one in found["next"]])
        logits = to_host(forward(ids, lm)[0][found["token"]])
        for one, share in zip(found["next"], shares(logits, best).tolist(), strict=True):
            one["unedited"] = share


def attributed(args: argparse.Namespace, seen: Look, token: int, edits: Sequence[Edit]) -> Attribution:
    """The parts of the logit of the answer that was asked for, by default the likeliest token."""
    likeliest = int(seen.logits[token].argmax())
    answer = likeliest if args.answer is None else option_token(seen.lm, args.answer, "--answer")
    against = None if args.against is None else option_token(seen.lm, args.against, "--against")
    return attribution(seen.lm, seen.ids, answer, token, against=against, edits=edits)


def patched(args: argparse.Namespace, lm: LM, ids: Sequence[int]) -> dict[str, Any]:
    """The grid of activation patching between two prompts, by default for the answers of both."""
    other = Chat(lm).ids_with(args.other) if args.chat else as_ids(lm, options.utf8("--other", args.other))
    answers = [int(forward(text, lm)[0][-1].argmax()) for text in (ids, other)]
    asked = [(args.answer, "--answer"), (args.against, "--against")]
    tokens = [
        one if text is None else option_token(lm, text, name) for one, (text, name) in zip(answers, asked, strict=True)
    ]
    return patching_data(lm, ids, other, *tokens)


def option_token(lm: LM, text: str, option: str) -> int:
    """The token that an option names: its text, or #ID."""
    token = int(text[1:]) if re.fullmatch(r"#\d{1,18}", text, re.ASCII) else text
    found: int = with_prefix(option, lambda: named_token(lm, token))
    return found


def sections_of_page(sections: Sequence[str]) -> list[str]:
    """The sections of the page for those of the text."""
    missing = [name for name in sections if name not in PAGE]
    if missing:
        raise UsageError(
            f"--only: expected sections of {', '.join(PAGE)} with --html, got {missing[0]}; npllm lab has it"
        )
    return [PAGE[name] for name in sections]
