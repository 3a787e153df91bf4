"""Where a chat template runs: jinja2's sandbox, with the settings and helpers that transformers gives a template.

The template comes with the model's files, so it sees nothing but the messages and a few helpers, and it runs in a
process of its own, which may die (child.py). The text is the same as in transformers. In addition, each of its
characters knows who wrote it (origin.py): every constant of the template is a `Text` or a `Number`, and every
operation on them goes through `Sandbox`.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes, pass_context, pass_eval_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace

from ..errors import UsageError
from .origin import MESSAGES, TEMPLATE, WIDE, Number, Text, Total, as_text, count, joined, kept, parts

MAX_BITS = 2**16  # of an integer
MAX_TEXT = 500_000  # characters that a template adds; the `tokenizers` library takes 270 bytes for each
MAX_COUNT = 10_000  # an argument of the filters batch, indent and slice


def answer(request: Any) -> dict[str, Any]:
    """Render a conversation, in the child process.

    request: the template, its special tokens, the messages, whether to open the next turn
    Returns {"parts": [[origin, text], ...]} with the origins of text/chat_ids.py, {"refused": the template's reason}
    or {"failed": the error}.
    """
    template, special_tokens, messages, add_generation_prompt = request
    Total.size = 0
    try:
        text: Any = program(template).render(
            messages=[
                {
                    own(key): as_role(value, i) if key == "role" else Text(value, MESSAGES + i)
                    for key, value in turn.items()
                }
                for i, turn in enumerate(messages)
            ],
            add_generation_prompt=add_generation_prompt,
            tools=None,
            documents=None,
            **{name: own(token) for name, token in special_tokens.items()},
        )
        text.encode()  # an unpaired surrogate in the template is an error here, not later
        most = MAX_TEXT + 4 * sum(len(turn["content"]) for turn in messages)
        if len(text) > most:
            raise OverflowError(f"a conversation of {len(text)} characters, more than {most}")
    except UsageError as error:
        return {"refused": str(error)}
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a template can raise an exception of any class
        return {"failed": f"{type(error).__name__}: {error}"}
    return {"parts": [[origin - MESSAGES, part] for origin, part in parts(text)]}


# Templates build control tokens from these: '<|' + message['role'] + '|>'
ROLES = {"system", "developer", "user", "assistant", "model", "tool", "function", "observation", "ipython"}


def own(text: str) -> Text:
    """A text that the template wrote."""
    return Text(text, TEMPLATE)


def as_role(role: str, i: int) -> Text:
    """The role of message i. A well-known one may be part of a control token."""
    return Text(role, TEMPLATE if role in ROLES else MESSAGES + i)


@functools.lru_cache(maxsize=8)
def program(template: str) -> jinja2.Template:
    """The compiled template."""
    sandbox = Sandbox()
    tree = sandbox.parse(template)
    if tree.find(nodes.EvalContextModifier) is None:  # without autoescape, `safe` changes nothing at the output
        for output in tree.find_all(nodes.Output):
            output.nodes = [without_safe(node) for node in output.nodes]
    return sandbox.template_class.from_code(sandbox, sandbox.compile(tree), sandbox.make_globals(None))


def without_safe(node: nodes.Expr) -> nodes.Expr:
    """The expression without `safe` at its end: the Markup that it makes has no origins."""
    while isinstance(node, nodes.Filter) and node.name == "safe" and node.node is not None:
        node = node.node
    return node


class Generator(CodeGenerator):
    """Generates Python code in which the template's constants have an origin. Nothing is computed at compile time."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:
        value = node.as_const(frame.eval_ctx)
        if type(value) in (str, int):
            self.write(f"environment.{'own' if type(value) is str else 'number'}({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("environment.concat(map(environment.as_text, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")

    def _output_const_repr(self, group: Any) -> str:
        return f"environment.own({super()._output_const_repr(group)})"


@pass_context  # a finalize function that needs the context keeps jinja2 from computing constants at compile time
def finalize(context: Context, value: Any) -> str:
    """A value as text, as a template outputs it."""
    return as_text(value)


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with the settings and helpers of a chat template, and with origins."""

    code_generator_class = Generator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    concat = staticmethod(joined)
    own, number, as_text = staticmethod(own), Number, staticmethod(as_text)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[GenerationBlock, "jinja2.ext.loopcontrols"],
            optimized=False,
            finalize=finalize,
        )
        self.filters |= {"tojson": to_json, "join": join}
        self.filters = {name: keeping(name, function) for name, function in self.filters.items()}
        self.globals["raise_exception"] = raise_exception
        self.globals["strftime_now"] = lambda form: kept(datetime.now().strftime(form), form)
        self.globals["dict"] = lambda *args, **keys: dict(*args, **keys)  # not the type, which has more to call
        self.globals["namespace"] = PlainNamespace

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The result of an operator. Every operator in a template comes here."""
        left, right = with_origin(left), with_origin(right)
        check_size(operator, left, right)
        return kept(super().call_binop(context, operator, left, right), left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **keys: Any) -> Any:
        """The result of a call. Every call in a template comes here."""
        args, keys = tuple(map(with_origin, args)), {name: with_origin(value) for name, value in keys.items()}
        result = super().call(context, function, *args, **keys)
        of = getattr(function, "__self__", None)
        is_method = isinstance(of, (str, int))  # of a text or number, so that it depends on nothing else
        return kept(result, of, *args, *keys.values()) if is_method else result

    def getattr(self, obj: Any, attribute: str) -> Any:
        """obj.attribute"""
        value = super().getattr(with_origin(obj), attribute)
        is_position = isinstance(obj, LoopContext) and attribute not in ("previtem", "nextitem")
        return Number(value) if is_position and type(value) is int else value

    def getitem(self, obj: Any, argument: Any) -> Any:
        """obj[argument]"""
        return super().getitem(with_origin(obj), argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """For str.format and str.format_map: a function that does the same safely, and with origins."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None or not isinstance(value.__self__, Text):
            return wrapped
        if value.__name__ == "format_map":
            return lambda keys: self.formatted(value.__self__, (), keys)
        return lambda *args, **keys: self.formatted(value.__self__, args, keys)

    def formatted(self, text: Text, args: Any, keys: Any) -> Text:
        """text.format(*args, **keys)"""
        formatter, numbers, pieces = SandboxedFormatter(self), itertools.count(), []
        for literal, name, layout, conversion in formatter.parse(text):
            pieces.append(kept(literal, text))
            if name is None:
                continue
            name = f"{next(numbers)}{name}" if re.match(r"$|[.[]", name) else name
            value, _ = formatter.get_field(name, args, keys)
            if not layout and not conversion:
                pieces.append(as_text(value))
                continue
            layout = formatter.vformat(re.sub("{}", lambda _: f"{{{next(numbers)}}}", layout or ""), args, keys)
            if WIDE.search(layout):
                raise OverflowError("a format has a width of more than 99999")
            value = formatter.convert_field(value, conversion)
            pieces.append(kept(formatter.format_field(value, layout), value))
        return joined(pieces)


def with_origin(value: Any) -> Any:
    """The value; a plain str as Text, whose methods keep origins."""
    return Text(value) if type(value) is str else value


def keeping(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, its result attributed to the template if all its inputs are the template's."""
    hidden = hasattr(function, "jinja_pass_arg")  # its first argument is the context or the environment

    @functools.wraps(function)
    def filtered(*args: Any, **keys: Any) -> Any:
        args, keys = tuple(map(with_origin, args)), {key: with_origin(value) for key, value in keys.items()}
        inputs = (*args[hidden:], *keys.values())
        if name in ("batch", "indent", "slice") and any(isinstance(n, int) and n > MAX_COUNT for n in inputs):
            raise OverflowError(f"the filter {name} has an argument of more than {MAX_COUNT}")
        return kept(function(*args, **keys), *inputs)

    return filtered


@pass_eval_context
def join(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> Any:
    """jinja2's filter, whose default separator has no origin."""
    return FILTERS["join"](eval_ctx, value, with_origin(d), attribute)


def check_size(operator: str, left: Any, right: Any) -> None:
    """Raise OverflowError for an operation with a huge result."""
    if isinstance(left, int) and isinstance(right, int):
        bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * right}.get(operator, 0)
        if bits > MAX_BITS:
            raise OverflowError(f"an integer has more than {MAX_BITS} bits")
        return
    for items, times in ((left, right), (right, left)):
        if operator == "*" and isinstance(items, (str, bytes, list, tuple)) and isinstance(times, int):
            count(len(items) * times)
    if operator == "+" and isinstance(left, (bytes, list, tuple)) and isinstance(right, (bytes, list, tuple)):
        count(len(left) + len(right))


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
    if isinstance(layout.get("indent"), int) and layout["indent"] > 100:
        raise OverflowError("JSON with an indentation of more than 100")
    return json.dumps(value, ensure_ascii=ensure_ascii, **layout)


def raise_exception(message: Any) -> None:
    """Raise UsageError: for templates that check the conversation, for example that user and assistant alternate."""
    raise UsageError(message)
