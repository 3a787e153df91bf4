"""A conversation in a file: JSON with the messages and the name of the model that wrote the replies.

{"model": "SmolLM2-135M-Instruct", "messages": [{"role": "user", "content": "Hello"}, ...]}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ModelFileError, UsageError
from ..storage.files import write_file
from ..storage.json_file import json_text, parse_json
from ..storage.paths import input_path, output_file
from ..text.arguments import shown

LARGEST = 1_000_000  # bytes: more text than any context holds


def write_chat(name: str | Path, messages: Sequence[Mapping[str, str]], model: str) -> None:
    """Write a conversation to a file, completely or not at all. Raises UsageError if that is not possible."""
    path = output_file(name, str(name), ".json")
    write_file(path, [json_text({"model": model, "messages": [dict(message) for message in messages]}).encode()])


def read_chat(name: str | Path) -> tuple[list[dict[str, str]], str]:
    """The messages of a conversation in a file, and the name of the model; `Chat.resume` checks their order.

    Raises
    ------
    UsageError : it cannot be read, is too large, or is not what `write_chat` writes
    """
    path = input_path(name, str(name))
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{name}: cannot be read: {error.strerror or error}") from error
    if len(text) > LARGEST:
        raise UsageError(f"{name}: expected at most {LARGEST} bytes, got more; no model's context holds that")
    try:
        keys = parse_json(text, path)
    except ModelFileError as error:
        raise UsageError(str(error).removesuffix("; download the file again")) from error
    return checked_messages(keys.get("messages"), str(name)), str(keys.get("model", "")) or "an unnamed model"


def checked_messages(messages: Any, where: str) -> list[dict[str, str]]:
    """The messages, if each is a role and a text. Raises UsageError if not."""
    if not isinstance(messages, list):
        raise UsageError(f'{where}: expected {{"messages": [...]}}, got {shown(messages)} as the messages')
    for number, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or message.keys() != {"role", "content"}
            or not all(isinstance(text, str) for text in message.values())
        ):
            raise UsageError(
                f"{where}: expected texts under role and content in message {number}, got {shown(message)}"
            )
    return messages
