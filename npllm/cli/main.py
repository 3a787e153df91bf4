"""The command npllm: reads the arguments, runs one command, turns every error into one line and an exit code.

It imports nothing heavy: `npllm --help` answers at once, and `main` sets BLAS's threads before NumPy is imported.
"""

import importlib
import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ..devices.address_space import check_imports
from ..devices.blas import short_spin
from ..errors import NotEnoughMemoryError, NpllmError, UsageError
from ..text.similar import hint
from ..version import __version__
from . import report
from .parser import Parser, quoted
from .signals import INTERRUPTED, as_exception

COMMANDS = {
    "generate": "continue a prompt",
    "chat": "talk with a model",
    "fill": "fill [MASK] in a text, with a masked language model such as BERT",
    "batch": "run all prompts of a file, and go on after any interruption",
    "tokenize": "show the tokens of a text",
    "show": "show the model's structure",
    "trace": "write every value of one forward pass to a file",
    "inspect": "show what the model does with a prompt, here or as a page",
    "lab": "the same for a live model, in a browser",
    "compare": "find the first step at which two runs part",
    "evaluate": "perplexity of a text, and what rounding the weights costs",
    "convert": "write a model to a folder, in another dtype",
    "models": "list the families of models that npllm computes",
    "bench": "time it: decoding, prefill, loading, with and without the KV cache",
    "selftest": "compare a device with the CPU, and time it",
    "completion": "make the shell complete commands, options and files",
}
DESCRIPTION = """\
Run a transformer LLM in plain array functions, and look at every number on the
way.

commands; npllm help COMMAND explains one:
""" + "".join(f"  {name:10}  {what}\n" for name, what in COMMANDS.items())
EXAMPLES = """\
examples:
  npllm generate "The capital of France is"
  npllm chat --model microsoft/Phi-3-mini-4k-instruct

environment:
  NPLLM_MODEL, NPLLM_DEVICE    stand in for --model and --device
  NPLLM_THREADS                stands in for --threads
  NPLLM_DEBUG=1                adds the traceback to an error
  NPLLM_CACHE                  where tokenizers that passed their trial are noted, and what was typed in a chat
  NPLLM_HISTORY                another file for what was typed; empty: keep nothing

exit codes:
  0    done
  1    two computations differ (compare, bench, selftest)
  2    wrong usage, or an output that cannot be written
  3    model or device not available
  4    model files rejected
  5    not enough memory
  6    done, but some records failed (batch)
  70   a bug of npllm
  130  interrupted (Ctrl-C)
  141  the reader of the output is gone, as in npllm ... | head -1
"""


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv`; return its exit code."""
    general = Parser("npllm", DESCRIPTION, EXAMPLES)
    general.add_argument("--version", action="version", version=f"npllm {__version__}")
    general.add_argument("command", nargs="?", metavar="COMMAND", help="one of the above")
    name, *rest = argv or ["help"]
    if name == "help":  # npllm help COMMAND is npllm COMMAND --help
        name, rest = next((word for word in rest if word != "help"), "--help"), ["--help"]
    if name in ("-h", "--help", "--version"):
        general.parse_args([name])  # ends here
    if name not in COMMANDS:
        general.error(unknown(name))
    if "numpy" not in sys.modules:
        check_imports()
    command: Any = importlib.import_module(f"{__package__}.{name}")  # not earlier: its imports take time
    as_exception()
    logging.getLogger("concurrent.futures").disabled = True  # a thread without memory would log a page; it raises, too
    parser = Parser(f"npllm {name}", command.DESCRIPTION, command.EXAMPLES)
    command.add_arguments(parser)
    args = parser.read(rest)
    try:
        if getattr(args, "threads", None) is not None:
            importlib.import_module("npllm.devices.threads").set_threads(args.threads)
        return command.run(args)
    except UsageError as error:
        raise UsageError(parser.with_flag(str(error))) from error


def unknown(name: str) -> str:
    """What is wrong with a command line that begins with this word."""
    if name.startswith("-"):
        return f"expected a COMMAND first, got {name}: options follow it{hint(name, ['--help', '--version'])}"
    if " " in name.strip():
        return f"expected a COMMAND first, got a text; to continue it: npllm generate {quoted(name)}"
    return f"there is no command {name!r}{hint(name, [*COMMANDS, 'help', '--version'])}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process; return the exit code. An error is one line on stderr."""
    if "numpy" not in sys.modules:  # else it is too late
        short_spin()
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = report.warning
        try:
            report.open_output()
            try:
                return run(sys.argv[1:] if argv is None else argv)
            except SystemExit:  # argparse has printed the help or the version; flush it
                report.write("")
                return 0
        except KeyboardInterrupt:
            report.note("")  # ends the line
            return INTERRUPTED
        except BrokenPipeError:  # the reader of our output is gone: no error
            report.abandon(sys.stdout)
            return 141
        except NpllmError as error:
            report.error(str(error))
            return error.exit_code
        except MemoryError as error:
            report.error(
                f"not enough memory: {str(error) or 'an allocation failed'}; free some, or take a smaller model"
            )
            return 5
        except Exception as error:  # noqa: BLE001 - anything unforeseen is a bug
            if "can't start new thread" in str(error):
                report.error(f"{error}: raise the limit of memory (ulimit -v) or of processes (ulimit -u)")
                return NotEnoughMemoryError.exit_code
            report.error(f"a bug of npllm: {type(error).__name__}: {error}; please report it, with NPLLM_DEBUG=1")
            return 70
        finally:
            report.close_output()
