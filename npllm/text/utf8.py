"""The check that a text can be encoded as UTF-8, and by a tokenizer."""

from typing import Any

from ..errors import UsageError

LONGEST = 10_000_000  # characters: the `tokenizers` library takes some 10 seconds and 2 GB for them


def checked_text(text: Any) -> str:
    """The text. Raises UsageError if it is none, too long, or has an unpaired surrogate, which UTF-8 cannot encode."""
    if not isinstance(text, str):
        raise UsageError(f"text: expected a string, got {type(text).__name__}")
    if len(text) > LONGEST:
        raise UsageError(f"text: expected at most {LONGEST} characters, got {len(text)}; use parts of it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"text: expected UTF-8, got {text[error.start]!r} at character {error.start}") from error
    return text
