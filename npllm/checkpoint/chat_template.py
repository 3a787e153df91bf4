"""The chat template of a checkpoint: a small jinja2 program that formats a conversation as one text.

It runs in another process (child.py), in a sandbox (sandbox.py) with the helpers and settings that transformers gives
it. So the text is the same, and a template that would run forever or take all memory is refused.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ..errors import ModelFileError, UsageError
from ..text.chat_ids import Messages, Part
from .child import Child, ChildError

SECONDS = 2.0  # for one rendering, and one more for each million characters; an ordinary one takes a few milliseconds
CHILD = Child("npllm.checkpoint.sandbox", memory=2**28)  # one process for all templates


class ChatRenderer(NamedTuple):
    """A chat template with its variables, as a Tokenizer takes it.

    template : the jinja2 source
    special_tokens : {"bos_token": "<s>", ...}, variables of the template
    """

    template: str
    special_tokens: Mapping[str, str]

    def __call__(self, messages: Messages, add_generation_prompt: bool) -> str:
        """The conversation as one text. Raises what `parts` raises."""
        return "".join(text for _, text in self.parts(messages, add_generation_prompt))

    def parts(self, messages: Messages, add_generation_prompt: bool) -> list[Part]:
        """The conversation as consecutive texts, each with its origin (see text/chat_ids.py).

        Raises
        ------
        UsageError : the template refuses the messages
        ModelFileError : the template fails, or takes too much time or memory
        UnavailableError : the process for templates does not start
        """
        turns = [dict(message) for message in messages]
        seconds = SECONDS + sum(len(turn["content"]) for turn in turns) / 1e6
        try:
            made = CHILD.ask([self.template, dict(self.special_tokens), turns, add_generation_prompt], seconds)
        except ChildError as error:
            made = {"failed": str(error)}
        if "refused" in made:
            raise UsageError(f"the model's chat template refuses the messages: {made['refused']}")
        if "failed" in made:
            raise ModelFileError(
                f"the model's chat template: expected the conversation as text, got none: {made['failed']};"
                " give it a prompt, not messages (generate without --chat), or take another copy of the model"
            )
        return [Part(*part) for part in made["parts"]]
