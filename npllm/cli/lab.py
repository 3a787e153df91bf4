"""npllm lab: a page in the browser with a live model."""

import argparse
from importlib.util import find_spec

from ..errors import UnavailableError, UsageError
from . import options

DESCRIPTION = """\
Serve a page, on this machine only, in which a prompt runs live: switch heads
and layers off, see which part said the next token, compare two prompts.
Open the address that it prints in a browser. Ctrl-C ends it.
"""
EXAMPLES = """\
examples:
  npllm lab --open
  npllm lab --model microsoft/Phi-3-mini-4k-instruct --port 9000
"""
PORT = 8642


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--port",
        type=int,
        default=PORT,
        metavar="P",
        help="listen on this port, or the next free one; 0: any (default: %(default)s)",
    )
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options.add_model_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Load the model, and serve the page until Ctrl-C."""
    if not 0 <= args.port < 2**16:
        raise UsageError(f"--port: expected 0 to {2**16 - 1}, got {args.port}")
    if any(find_spec(library) is None for library in ("starlette", "uvicorn")):
        raise UnavailableError(
            "lab: starlette and uvicorn are not installed; install them with: pip install starlette uvicorn"
        )
    from ..lab.answers import Lab
    from ..lab.server import serve

    serve(Lab(options.load_writer(args), options.model_name(args.model)), args.port, args.open)
    return 0
