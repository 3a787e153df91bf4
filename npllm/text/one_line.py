"""Text from files and users, made safe to show: on one line, without characters that a terminal would obey."""

import re

# Controls (C0, DEL, C1); marks, embeddings, overrides and isolates of bidirectional text; the line and the paragraph
# separator; unpaired surrogates. U+200C and U+200D stay: they only keep characters apart or join them.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str, keep: str = "") -> str:
    r"""The text with every control character, except those to keep, escaped as in JSON.

    >>> print(escaped("a\x1b[31m\u202eé"), escaped("a\tb", keep="\t") == "a\tb")
    a\u001b[31m\u202eé True
    """
    return CONTROLS.sub(lambda match: match[0] if match[0] in keep else f"\\u{ord(match[0]):04x}", text)


def one_line(text: object, most: int = 500) -> str:
    r"""The text as one line of at most `most` characters: line breaks become spaces, other controls are escaped.

    A long text keeps its beginning and its end: a message says first what is wrong and last what to do. It is cut
    before anything else: a file may have put 50 MB into it.

    >>> one_line("layers.0:\nexpected float32, got " + 100 * "x" + "; download it again", most=60)
    'layers.0: expected float32, got xxxxx...x; download it again'
    """
    line = str(text)
    if len(line) > 2 * most:
        line = line[:most] + line[-most:]
    line = escaped(re.sub("[\r\n]+", " ", line))
    if len(line) <= most:
        return line
    end = most // 3
    return line[: most - end - 3] + "..." + line[-end:]


def line_of(error: BaseException) -> str:
    """The informative line of an error's text: the last if it is a traceback, perhaps one of Ray's, else the first."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[-1 if any(line.startswith("Traceback") or "ray::" in line for line in lines) else 0]
