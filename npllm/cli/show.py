"""npllm show: the model's structure."""

import argparse

from ..inspect.structure import structure
from . import options, report

DESCRIPTION = """\
Show the model's layers, as printing a PyTorch model does, and the number, dtype
and size of their parameters.
"""
EXAMPLES = """\
examples:
  npllm show
  npllm show --model microsoft/Phi-3-mini-4k-instruct
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Print the structure and return the exit code."""
    lines = structure(options.load_model(args))
    name = "" if args.model else ", the default model (-m default)"
    lines.insert(lines.index("") + 1, f"name: {options.model_name(args.model)}{name}")
    report.write_lines(lines)
    return 0
