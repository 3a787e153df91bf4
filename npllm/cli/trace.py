"""npllm trace: write every value of one forward pass to a file."""

import argparse

from ..errors import UsageError
from ..inspect.runs import trace_metadata
from ..inspect.trace import parse_ids, trace, write_trace
from ..loop import as_ids
from ..storage.paths import output_file
from . import options, report

DESCRIPTION = """\
Run one forward pass over PROMPT and write all intermediate values to a file.

It is a safetensors file in float32, with a named tensor for each value:
embedding, layers.0.attention.weights [heads, tokens, tokens], and so on. The
logits are always included. npllm compare compares two such files.
"""
EXAMPLES = """\
examples:
  npllm trace "The capital of France is" -o paris.safetensors
  npllm trace "The capital of France is" -o paris.safetensors --only "*.weights,layers.7.*"
  npllm trace --ids 504,3575,282,4649,314 -o paris.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    options.add_text(parser, "PROMPT")
    parser.add_argument("--ids", metavar="1,2,3", help="token ids instead of PROMPT; needs no tokenizer")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the .safetensors file to write")
    parser.add_argument("--only", metavar="PATTERN", default="*", help='names to record, as in "*.weights,layers.7.*"')
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Trace, write the file, and return the exit code."""
    if args.ids is not None and args.text is not None:
        raise UsageError("PROMPT and --ids: expected only one of them, got both")
    prompt = options.read_prompt(args.text) if args.ids is None else parse_ids(args.ids, "--ids")
    output = output_file(args.output, f"--output {args.output}", ".safetensors")
    lm = options.load_model(args)
    ids = as_ids(lm, prompt)
    arrays = trace(lm, ids, args.only)
    write_trace(output, arrays, trace_metadata(ids, args.model, args.dtype, args.device))
    report.note(f"npllm: wrote {len(arrays)} values for {len(ids)} tokens to {args.output}")
    return 0
