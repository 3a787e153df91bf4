"""npllm trace: every value of one forward pass, into a file."""

import argparse
import difflib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from array_api_compat import array_namespace, device
from safetensors.numpy import save

from ..backend.devices import to_host
from ..backend.memory import check_memory
from ..errors import UsageError
from ..generate import as_ids, check_ids
from ..model import LM, forward
from ..shapes import Array
from ..tap import record
from . import options, report

DESCRIPTION = """\
Run one forward pass over PROMPT and write every value on the way into a file.

It is a safetensors file in float32, with a tensor for each value under its name:
embedding, layers.0.attention.weights [heads, tokens, tokens], and so on; and
always the logits.
"""
EXAMPLES = """\
examples:
  npllm trace "The capital of France is" -o paris.safetensors
  npllm trace "The capital of France is" -o paris.safetensors --only "*.weights,layers.7.*"
  npllm trace --ids 504,3575,282,4649,314 -o paris.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    options.add_text(parser, "PROMPT")
    parser.add_argument("--ids", metavar="1,2,3", help="token ids in place of PROMPT; they need no tokenizer")
    parser.add_argument("-o", "--output", metavar="FILE", required=True, help="the .safetensors file to write")
    parser.add_argument("--only", metavar="PATTERN", default="*", help='names to keep, as in "*.weights,layers.7.*"')
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Trace, write the file, and return the exit code."""
    if args.ids is not None and args.text is not None:
        raise UsageError("PROMPT and --ids: expected one of them, got both")
    prompt = options.read_prompt(args.text) if args.ids is None else parse_ids(args.ids)
    output = output_file(args.output)
    lm = options.load_model(args)
    ids = as_ids(lm, prompt)
    arrays = trace(lm, ids, args.only)
    write_safetensors(output, arrays, {"ids": ",".join(map(str, ids))})
    report.note(f"npllm: wrote {len(arrays)} values for {len(ids)} tokens to {args.output}")
    return 0


def parse_ids(text: str) -> list[int]:
    """The value of --ids."""
    if not re.fullmatch(r"\d+(,\d+)*", text, re.ASCII):
        raise UsageError(f"--ids: expected token ids with commas between them, got {text!r}")
    return [int(part) for part in text.split(",")]


def output_file(name: str) -> Path:
    """The file to write, with links followed, checked before the work. A device is refused: it would be replaced."""
    path = Path(name).resolve()
    if not path.parent.is_dir():
        raise UsageError(f"--output {name}: expected a folder that exists, got {path.parent}")
    if path.exists() and not path.is_file():
        raise UsageError(f"--output {name}: expected the name of a file, got a folder or a device")
    return path


def trace(lm: LM, ids: Sequence[int], only: str = "*") -> dict[str, np.ndarray]:
    """The tapped values of one pass over the tokens, by name, in float32, in the order of execution; and the logits.

    Raises
    ------
    UsageError : a pattern in `only` names nothing; the ids are too many, or have no row in the embeddings matrix
    NotEnoughMemoryError : the values do not fit
    """
    context = lm.config.max_position_embeddings
    if len(ids) == 0:
        raise UsageError("the prompt is empty: expected at least one token")
    if len(ids) > context:
        raise UsageError(f"the prompt is too long: {len(ids)} tokens, and the model's context is {context} tokens")
    check_ids(ids, lm.config.vocab_size)
    like = lm.weights.norm
    xp = array_namespace(like)
    on_device = xp.asarray(ids, dtype=xp.int64, device=device(like))

    # A pass over the first token alone tells the names, and how large the values of all tokens will be.
    first: dict[str, Array] = {}
    forward(on_device[:1], lm.weights, lm.config, tap=record(first))
    check_patterns(only, first)
    patterns = f"{only},logits"
    sizes = {
        name: 4 * value.size * len(ids) ** (2 if name.endswith((".scores", ".weights")) else 1)
        for name, value in first.items()
    }
    check_memory({"traced values, twice": 2 * sum(size for name, size in sizes.items() if matches(name, patterns))})

    seen: dict[str, Array] = {}
    forward(on_device, lm.weights, lm.config, tap=record(seen, patterns))
    # Some values are views of larger ones; safetensors would write what lies behind their first number.
    return {name: np.ascontiguousarray(to_host(value), dtype=np.float32) for name, value in seen.items()}


def matches(name: str, patterns: str) -> bool:
    """As in `tap.record`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns.split(","))


def check_patterns(only: str, names: Collection[str]) -> None:
    """Refuse a pattern that no name matches, and say which come near it."""
    for pattern in only.split(","):
        if not any(matches(name, pattern) for name in names):
            any_layer = dict.fromkeys(re.sub(r"\d+", "*", name) for name in names)
            ends = dict.fromkeys("*." + name.rsplit(".", 1)[-1] for name in any_layer if "." in name)
            near = difflib.get_close_matches(pattern, [*any_layer, *ends, *names], n=3)
            if any(matches(name, re.sub(r"\d+", "*", pattern)) for name in names):
                hint = f"the layers are 0 to {max(int(i) for name in names for i in re.findall(r'[0-9]+', name))}"
            elif near:
                hint = f"did you mean {', '.join(near)}?"
            else:
                hint = f"there are {', '.join(any_layer)}"
            raise UsageError(f"--only: no value is named {pattern}; {hint}")


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write float32 arrays into a safetensors file, in whole or not at all: beside its place first, then into it.

    Raises
    ------
    UsageError : it cannot be written: no permission, no space
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        try:
            part.write_bytes(save(dict(arrays), dict(metadata)))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
