"""The chat template of a checkpoint: a small jinja2 program that formats a conversation as one text.

It runs in sandbox.py, which gives it the helpers and settings that transformers gives it. So the text is the same.
"""

from collections.abc import Callable, Mapping

from ..errors import ModelFileError, UsageError
from ..text.chat_ids import Messages


def chat_renderer(template: str, special_tokens: Mapping[str, str]) -> Callable[[Messages, bool], str]:
    """The function that a Tokenizer takes: render(messages, add_generation_prompt) -> the conversation as one text.

    Parameters
    ----------
    template : the jinja2 source
    special_tokens : {"bos_token": "<s>", ...}, variables of the template
    """

    def render(messages: Messages, add_generation_prompt: bool) -> str:
        from .sandbox import Sandbox  # here, because jinja2 is slow to import and most runs render no template

        try:
            text = (
                Sandbox()
                .program(template)
                .render(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=add_generation_prompt,
                    tools=None,
                    documents=None,
                    **special_tokens,
                )
            )
            text.encode()  # an unpaired surrogate in the template is an error here, not later
            return text
        except (UsageError, MemoryError):
            raise
        except Exception as error:  # a template can raise an exception of any class
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelFileError(
                f"the model's chat template: expected the conversation as text, got {reason};"
                " use generate without --chat, or another copy of the model"
            ) from error

    return render
