"""What a request asks for: a text, parts of the model switched off, and values from a second text.

The page keeps a run in the fragment of its address, so a link restores it. What arrives is checked as strictly as the
arguments of a call: an unknown key might be one that would change the numbers.
"""

from collections.abc import Collection, Mapping
from dataclasses import MISSING, fields
from typing import Any, NamedTuple

from ..apps.chat import Chat
from ..errors import UsageError
from ..inspect.edits import Edit, Patch, check_edits, check_patches
from ..lm import LM
from ..loop import as_ids
from ..options import check_prompt
from ..text.arguments import boolean, checked, shown, whole_number


class Run(NamedTuple):
    """One run of the model over a text."""

    ids: tuple[int, ...]
    edits: tuple[Edit, ...] = ()
    patches: tuple[Patch, ...] = ()
    other: tuple[int, ...] = ()  # the second text

    @property
    def is_changed(self) -> bool:
        """Whether it is another run than the model's own."""
        return bool(self.edits or self.patches)

    @property
    def untouched(self) -> "Run":
        """The same text without changes."""
        return Run(self.ids)


def keys_of(what: str, value: Any, known: Collection[str]) -> Mapping[str, Any]:
    """An object of a request. Raises UsageError for anything else, and for an unknown key."""
    found = checked(what, value, Mapping, lambda _: True, "an object")
    for key in found.keys() - known:
        raise UsageError(f"{what}: expected the keys {', '.join(known)}, got {shown(key)}")
    return found


def read_run(lm: LM, value: Any) -> tuple[Run, int]:
    """The run, and how many of its tokens are the prompt.

    Raises UsageError if a key, token, part or position does not exist, or the text is empty or too long.
    """
    keys = keys_of("run", value, ("prompt", "chat", "ids", "prompt_length", "edits", "patches", "other"))
    ids = read_text(lm, "run", {name: keys[name] for name in ("prompt", "chat", "ids") if name in keys})
    length = keys.get("prompt_length")
    length = len(ids) if length is None else whole_number("prompt_length", length, 1, len(ids))
    edits = [read_part("edits", one, Edit) for one in list_of("edits", keys.get("edits"))]
    patches = [read_part("patches", one, Patch) for one in list_of("patches", keys.get("patches"))]
    other = [] if keys.get("other") is None else read_text(lm, "other", keys["other"])
    if patches and not other:
        raise UsageError(
            'patches: expected a second text, from which the values come, got none; give one under "other"'
        )
    check_patches(lm, patches, min(len(ids), len(other) or len(ids)))
    return Run(tuple(ids), tuple(check_edits(lm, edits)), tuple(patches), tuple(other)), length


def read_text(lm: LM, what: str, value: Any) -> list[int]:
    """The ids of a text: a prompt, as it is or in the chat format; or exact ids."""
    keys = keys_of(what, value, ("prompt", "chat", "ids"))
    ids = keys.get("ids")
    if ids is None:
        prompt = checked("prompt", keys.get("prompt", ""), str, lambda _: True, "a text")
        chat = boolean("chat", keys.get("chat", False))
        ids = Chat(lm).ids_with(prompt) if chat else as_ids(lm, prompt)
    return check_prompt(ids, lm.config, new=0, what="second prompt" if what == "other" else "prompt")


def list_of(what: str, value: Any) -> list[Any]:
    """A list of a request; none for null."""
    return [] if value is None else checked(what, value, list, lambda _: True, "a list")


def read_part(what: str, value: Any, kind: Any) -> Any:
    """An edit or a patch, to be checked."""
    keys = keys_of(what, value, [field.name for field in fields(kind)])
    for field in fields(kind):
        if field.default is MISSING and field.name not in keys:
            raise UsageError(f"{what}: expected the key {field.name}, got {shown(dict(keys))}")
    return kind(**keys)
