"""What a user types in a chat, turn by turn: a line, several pasted lines, or a text between two \"\"\"."""

import sys
from collections.abc import Callable

from ..errors import UsageError
from . import options, report

MARK = '"""'


def read_turn(interactive: bool, remember: Callable[[str], None]) -> tuple[str, str] | None:
    """The next turn as a command and what follows it, ("/load", "FILE"), or as ("", TEXT); None at the end of stdin.

    A line that starts with \"\"\" starts a text that ends at a line ending with \"\"\". Ctrl-C within such a text
    discards it. A terminal that supports it (bracketed paste) marks what is pasted, and `input` returns its lines as
    one.

    remember : is called with what was typed at a terminal

    Raises
    ------
    UsageError : it is not UTF-8, or its end is missing
    """
    typed = read_line(interactive, "> ")
    if typed is None:
        return None
    is_block = typed.lstrip().startswith(MARK)
    while is_block and not typed.strip().removeprefix(MARK).endswith(MARK):
        try:
            line = read_line(interactive, "... ")
        except KeyboardInterrupt:
            if not interactive:
                raise
            report.note("")  # ends the line
            return "", ""
        if line is None:
            raise UsageError(f"stdin: expected {MARK} at the end of a text that begins with it, got the end of input")
        typed += "\n" + line
    text = options.utf8("stdin", typed.replace("\r\n", "\n"))
    if interactive and text.strip():
        remember(text)
    if is_block:
        return "", text.strip().removeprefix(MARK).removesuffix(MARK).removeprefix("\n").removesuffix("\n")
    return split_command(text)


def split_command(text: str) -> tuple[str, str]:
    """A typed text as a command and what follows it; ("", TEXT) if it is none.

    A line that begins with two slashes is a text that begins with one. A text of several lines is never changed, and
    two slashes with a space are a comment.

    >>> split_command("/load my talk.json "), split_command("Hello"), split_command("//etc"), split_command("// TODO")
    (('/load', 'my talk.json'), ('', 'Hello'), ('', '/etc'), ('', '// TODO'))
    """
    if text.startswith("//"):
        return "", text if "\n" in text or text[2:3].isspace() else text[1:]
    if not text.startswith("/"):
        return "", text
    name, *rest = text.split(maxsplit=1)
    return name, "".join(rest).strip()


def read_line(interactive: bool, prompt: str) -> str | None:
    """The next line of stdin, or None at its end. A terminal gets a prompt, on stdout if that is a terminal too."""
    if interactive and sys.stdout is not None and sys.stdout.isatty():
        try:
            return input(prompt)
        except EOFError:
            report.write("\n")
            return None
    if interactive:
        report.note(prompt, end="")
    with options.readable_stdin():
        line = sys.stdin.readline()
    return line.removesuffix("\n").removesuffix("\r") if line else None
