"""Where a chat template runs: jinja2's sandbox, with the settings and helpers that transformers gives a template.

The template comes with the model's files, so it sees nothing but the messages and a few helpers. Its loop iterations
and calls are counted, so that it terminates; the size of the text it builds is not limited.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from ..errors import UsageError

MAX_STEPS = 200_000  # loop iterations and calls together; a conversation of a thousand messages takes some ten thousand


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the settings and helpers of a chat template. For one rendering only, as it counts steps."""

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, "jinja2.ext.loopcontrols"])
        self.steps = 0
        self.filters["tojson"] = to_json
        self.filters["counted"] = self.counted
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self.globals["dict"] = lambda *args, **keys: dict(*args, **keys)  # not the type, which has more to call
        self.globals["namespace"] = PlainNamespace

    def program(self, template: str) -> jinja2.Template:
        """The template compiled, with every loop counted."""
        tree = self.parse(template)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    def count(self) -> None:
        """Count one step. Raises OverflowError after MAX_STEPS of them."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise OverflowError(f"it takes more than {MAX_STEPS} steps")

    def call(self, context: Context, function: Any, /, *args: Any, **keys: Any) -> Any:
        """The result of a call. Every call in a template goes through here."""
        self.count()
        return super().call(context, function, *args, **keys)

    @jinja2.pass_context  # it keeps jinja2 from evaluating a loop over constants at compile time
    def counted(self, context: Context, items: Any) -> Iterator[Any]:
        """The items of a loop, counted."""
        for item in items:
            self.count()
            yield item


class GenerationBlock(Extension):
    """{% generation %} ... {% endgeneration %} marks the assistant's text for training; here it is plain text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class PlainNamespace(Namespace):
    """jinja2's namespace without names that begin with an underscore: those are Python's own and could expose it."""

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
    """Plain JSON, which a model reads; jinja2's own tojson escapes for HTML. layout: indent, separators, sort_keys."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def raise_exception(message: Any) -> None:
    """For templates that check the conversation, such as that user and assistant alternate."""
    raise UsageError(f"the model's chat template refuses the messages: {' '.join(str(message).split())}")
