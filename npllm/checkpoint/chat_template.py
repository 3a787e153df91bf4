"""The chat template of a checkpoint: a small jinja2 program that writes a conversation as one text.

It comes with the model's files, so it runs in jinja2's sandbox and sees nothing but the messages and a few helpers.
Its loops and calls are counted, so that they end; how large a text it builds is not limited. The helpers and settings
are those that transformers gives a template, so the text is the same.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ..errors import ModelFileError, UsageError
from ..tokenizer import Messages

MOST_STEPS = 200_000  # rounds of loops and calls, in all; a conversation of a thousand messages takes some ten thousand


def chat_renderer(template: str, special_tokens: Mapping[str, str]) -> Callable[[Messages, bool], str]:
    """The function that a Tokenizer takes: render(messages, add_generation_prompt) -> the conversation as one text.

    Parameters
    ----------
    template : the jinja2 source
    special_tokens : {"bos_token": "<s>", ...}, variables of the template
    """

    def render(messages: Messages, add_generation_prompt: bool) -> str:
        try:
            sandbox = Sandbox()
            tree = sandbox.parse(template)
            for loop in tree.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
            program = sandbox.template_class.from_code(sandbox, sandbox.compile(tree), sandbox.make_globals(None))
            text = program.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tools=None,
                documents=None,
                **special_tokens,
            )
            text.encode()  # half of a surrogate pair in the template is an error here, not later
            return text
        except UsageError:
            raise
        except Exception as error:  # a program's errors can be of any class
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ModelFileError(
                f"the model's chat template: expected the conversation as text, got {reason};"
                " use generate without --chat, or another copy of the model"
            ) from error

    return render


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the settings and helpers of a chat template; for one rendering, as it counts steps."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"])
        self.steps = 0
        self.filters["tojson"] = to_json
        self.filters["counted"] = self.counted
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.globals["dict"] = lambda *args, **keys: dict(*args, **keys)  # not the type, which has more to call
        self.globals["namespace"] = PlainNamespace

    def count(self) -> None:
        self.steps += 1
        if self.steps > MOST_STEPS:
            raise OverflowError(f"it takes more than {MOST_STEPS} steps")

    def call(self, context: Context, function: Any, /, *args: Any, **keys: Any) -> Any:
        """Every call in a template goes through here."""
        self.count()
        return super().call(context, function, *args, **keys)

    @jinja2.pass_context  # it keeps jinja2 from filling in a loop over constants at compile time
    def counted(self, context: Context, items: Any) -> Iterator[Any]:
        """What a loop runs over."""
        for item in items:
            self.count()
            yield item


class GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's text for training; here it is only text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class PlainNamespace(Namespace):
    """jinja2's namespace without names that start with an underscore: these are Python's own, and could reach it."""

    def __init__(*args: Any, **keys: Any) -> None:  # no `self`: a template may use that name for a value
        self, *rest = args
        values = dict(*rest, **keys)
        for name in values:
            refuse_underscore(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        refuse_underscore(name)
        super().__setitem__(name, value)


def refuse_underscore(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {name!r}")


def to_json(value: Any, ensure_ascii: bool = False, **layout: Any) -> str:
    """jinja2's own tojson escapes for HTML; a model reads plain JSON. layout: indent, separators, sort_keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def raise_exception(message: Any) -> None:
    """For templates that check the conversation, such as that user and assistant take turns."""
    raise UsageError(f"the model's chat template refuses the messages: {' '.join(str(message).split())}")
