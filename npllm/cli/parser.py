"""The argument parser of the commands: argparse, with errors of one line that say what was probably meant."""

import argparse
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

from ..errors import UsageError
from ..text.similar import hint
from . import report


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviated flags, which reports an error in one line, as npllm does everywhere."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def print_help(self, file: object = None) -> None:
        """Print the help by `report.write`: argparse ignores a failed write."""
        report.write(self.format_help())

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """The value of a flag. Some versions of argparse drop the "--" of --stop=--, and then miss it."""
        if action.option_strings and arg_strings == ["--"]:
            return self._get_value(action, "--")
        return super()._get_values(action, arg_strings)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of the arguments. Raises UsageError for wrong ones."""
        self.check_flags(argv)
        args, rest = self.parse_known_args(argv)
        text = next((action for action in self._actions if action.dest == "text"), None)
        if rest and text is not None and not any(word.startswith("-") for word in rest):
            words = [args.text, *rest]
            self.error(f"expected one {text.metavar}, got {len(words)}; quote them: {quoted(' '.join(words))}")
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return args

    def check_flags(self, argv: Sequence[str]) -> None:
        """Raise UsageError for a flag that does not exist, which argparse would report after all other errors.

        As in argparse, a word with a space is no flag. "-model" is refused, too: it would be -m with the value "odel".
        """
        known = self._option_string_actions
        for word in argv[: argv.index("--")] if "--" in argv else argv:
            flag = word.partition("=")[0]
            mistyped = flag.startswith("--") and flag not in known
            if " " not in word and (mistyped or (len(flag) > 2 and f"-{flag}" in known)):
                self.error(f"there is no {flag}{self.meant('--' + flag.lstrip('-'))}")

    def meant(self, flag: str) -> str:
        """What was probably meant by a flag that does not exist."""
        texts = [action.metavar for action in self._actions if action.dest == "text"]
        if flag in [f"--{text}".lower() for text in texts]:
            return f": {texts[0]} is given without a flag"
        near = hint(flag, [known for known in self._option_string_actions if known.startswith("--")])
        return near or "".join(f"; a {text} that begins with dashes comes after --" for text in texts)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, where argparse prints its usage and exits."""
        raise UsageError(f"{message}; see {self.prog} --help".replace("?; see", "? See"))

    def with_flag(self, message: str) -> str:
        """A message that begins with the name of a Python argument, with that of the flag; any other unchanged.

        "top_k: expected ..." becomes "--top-k: expected ...". compare has several flags for a dtype: it is unchanged.
        """
        name, colon, rest = message.partition(": ")
        flag = "model" if name == "lm" else name.replace("_", "-").replace(" ", "-")
        known = self._option_string_actions
        return f"--{flag}{colon}{rest}" if f"--{flag}" in known and f"--a-{flag}" not in known else message


def quoted(text: str) -> str:
    """A text as one argument of a command line."""
    return shlex.quote(text) if any(mark in text for mark in '"$`\\!') else f'"{text}"'
