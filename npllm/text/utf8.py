"""Text that can be written as UTF-8."""

from ..errors import UsageError


def checked_text(text: str) -> str:
    """The text, if UTF-8 can write it: half of a surrogate pair, which bytes of other encodings leave, it cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"text: expected UTF-8, got {text[error.start]!r} at character {error.start}") from error
    return text
