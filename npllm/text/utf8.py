"""The check that a text can be encoded as UTF-8."""

from ..errors import UsageError


def checked_text(text: str) -> str:
    """The text. Raises UsageError for an unpaired surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"text: expected UTF-8, got {text[error.start]!r} at character {error.start}") from error
    return text
