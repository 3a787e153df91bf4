"""Mutations of files. Each takes a random.Random, so that a seed reproduces it."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

# Texts that stand for JSON which Python's json cannot write: they are replaced in the written text.
DEEP, HUGE = '"@deep@"', '"@huge@"'
STRINGS = [
    *(
        "",
        " ",
        "\n",
        "a",
        "\0",
        "é",
        "\U0001f600",
        "\ud800",
        "\u202ereversed",
        "\x1b]52;c;Zm9v\x07",
        "a\r\nb",
        "\ufeff",
    ),
    *("../x", "/etc/passwd", "C:\\x", "model.safetensors", "a/../../b.safetensors", "%s%s%n", "{0}", "x" * 300),
    *(
        "<|end|>",
        "<s>",
        "<unk>",
        "Ġ",
        "▁",
        "▁▁",
        "[UNK]",
        "null",
        "true",
        "1",
        "-1",
        "1e5",
        "NaN",
        "(",
        "(a+)+$",
        "[",
        "\\",
    ),
]
NUMBERS = [
    *(0, 1, -1, 2, 3, 7, 8, 31, 32, 33, 127, 255, 256, 4095, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64 - 1,
        2**64,
        10**30,
        10**400,
        -(2**31),
        -(2**63),
        0.0,
        -0.0,
        0.5,
        1.0,
        4.0,
        1.5,
    ),
    *(1e-5, 1e-45, 1e-300, 1e38, 1e39, 1e300, 1e308, -1e308, float("nan"), float("inf"), -float("inf")),
]
OTHERS = [None, True, False, [], {}, [[]], [None], {"": None}, [[], {}], "@deep@", "@huge@"]
FEW, MANY = 20, 20_000  # repetitions


def value(random: Random) -> Any:
    """Any JSON value."""
    return random.choice(random.choice((STRINGS, NUMBERS, OTHERS)))


def mutate_string(random: Random, text: str) -> Any:
    """A string changed in a place or two. A string that holds JSON, as a trace's names do, may be changed as a tree."""
    if text[:1] in ("[", "{") and random.random() < 0.7:
        try:
            return json.dumps(mutate_tree(random, json.loads(text)))
        except (ValueError, RecursionError):
            pass
    at, end = sorted(random.randint(0, len(text)) for _ in range(2))
    match random.randrange(6):
        case 0:
            return text[:at] + random.choice(STRINGS) + text[end:]
        case 1:
            return text[:at] + random.choice(STRINGS) + text[at:]
        case 2:
            return text[:at] + text[end:]
        case 3:
            return text[:at] + text[at:end] * random.choice((2, 3, FEW, MANY // (1 + end - at))) + text[end:]
        case 4:
            return text[::-1]
        case _:
            return text[:at] + chr(random.choice((random.randrange(128), random.randrange(0x3000)))) + text[at + 1 :]


def mutate_leaf(random: Random, leaf: Any) -> Any:
    """A value near the given one."""
    if isinstance(leaf, str):
        return mutate_string(random, leaf)
    if isinstance(leaf, bool) or leaf is None:
        return random.choice((True, False, None, 0, 1, "true"))
    if isinstance(leaf, int | float):
        if not abs(leaf) < 1e300:  # NaN, too
            return random.choice(NUMBERS)
        near = (leaf + 1, leaf - 1, 2 * leaf, -leaf, leaf / 2, str(leaf), [leaf], random.choice(NUMBERS))
        return random.choice(near)
    if isinstance(leaf, list):
        return random.choice(
            (leaf[::-1], leaf * random.choice((2, FEW)), leaf[: len(leaf) // 2], [leaf], [*leaf, value(random)])
        )
    return random.choice(([leaf], list(leaf), list(leaf.values()), {"": leaf}))


def mutate_tree(
    random: Random, tree: Any, others: Sequence[Any] = (), known: Mapping[str, Sequence[Any]] | None = None
) -> Any:
    """A JSON tree changed in one to four places. It is changed in place where that is possible.

    others : trees to take parts of
    known : keys that mean something, with values, to insert into the top object
    """
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if known and isinstance(tree, dict) and random.random() < 0.25:
            name = random.choice([*known])
            tree[name] = random.choice(known[name]) if random.random() < 0.7 else value(random)
            continue
        parent, key = place(random, tree)
        if parent is None:
            tree = mutate_leaf(random, tree) if random.random() < 0.1 else tree
            continue
        change(random, parent, key, others)
    return tree


def place(random: Random, tree: Any) -> tuple[Any, Any]:
    """A random node below the root, as its container and its key; shallow nodes are likelier."""
    parent, key, node = None, None, tree
    while isinstance(node, dict | list) and node and (parent is None or random.random() < 0.75):
        parent, key = node, random.choice([*node]) if isinstance(node, dict) else random.randrange(len(node))
        node = parent[key]
    return parent, key


def change(random: Random, parent: Any, key: Any, others: Sequence[Any]) -> None:
    """Change one entry of an object or a list."""
    match random.randrange(7):
        case 0:
            parent[key] = value(random)
        case 1:
            del parent[key]
        case 2 if isinstance(parent, list):
            parent[key:key] = [parent[key]] * random.choice((1, 2, FEW, MANY if random.random() < 0.05 else 1))
        case 2:
            parent[str(mutate_string(random, key))] = parent[key]
        case 3 if isinstance(parent, dict):
            name = random.choice(STRINGS if random.random() < 0.3 else [*parent])
            parent[name] = parent.pop(key)
        case 4 if others:  # a part of another file, if possible the one with the same name
            source, at = place(random, random.choice(others))
            same = isinstance(source, dict) and isinstance(key, str) and key in source
            if source is not None:
                parent[key] = json.loads(json.dumps(source[key if same else at]))
        case _:
            parent[key] = mutate_leaf(random, parent[key])


def dumps(random: Random, tree: Any) -> bytes:
    """A JSON text, in one of the ways to write it."""
    try:
        text = json.dumps(tree, ensure_ascii=random.random() < 0.5)
    except (RecursionError, ValueError):  # ValueError: a number of more than 4,300 digits
        text = "[]"
    depth = random.choice((10, 100, 900, 2000, 100_000))
    text = text.replace(DEEP, "[" * depth + "]" * depth).replace(HUGE, "1" + "0" * random.choice((400, 5000)))
    data = text.encode("utf-8", "surrogatepass")
    return (
        random.choice((b"\xef\xbb\xbf" + data, text.encode("utf-16", "surrogatepass")))
        if random.random() < 0.01
        else data
    )


def mutate_bytes(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """Bytes changed in one to four places, whatever they mean."""
    for _ in range(random.choice((1, 1, 2, 4))):
        at, end = sorted(random.randint(0, len(data)) for _ in range(2))
        end = min(end, at + random.choice((1, 8, 64, len(data))))
        match random.randrange(7):
            case 0:
                data = data[:at] + random.randbytes(1) + data[at + 1 :]
            case 1:
                width = random.choice((4, 8))
                number = int(random.choice(NUMBERS[:30])) % 256**width
                data = data[:at] + number.to_bytes(width, "little") + data[at + width :]
            case 2:
                data = data[:at] + data[end:]
            case 3:
                data = data[:at] + data[at:end] * random.choice((2, 3, FEW)) + data[end:]
            case 4:
                data = data[:at] + random.randbytes(random.choice((1, 8))) + data[at:]
            case 5 if others:
                data = data[:at] + random.choice(others)[at:]
            case _:
                data = data[: random.randint(0, len(data))] if random.random() < 0.3 else data[:at] + data[end:]
    return data


def parsed(data: bytes) -> Any:
    """A JSON text as a tree; None if it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def json_mutator(known: Mapping[str, Sequence[Any]] | None = None) -> Callable[[Random, bytes, Sequence[bytes]], bytes]:
    """The mutation of a JSON file: of its tree, or in one of ten cases of its bytes."""

    def mutate(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
        tree = parsed(data)
        if tree is None or random.random() < 0.1:
            return mutate_bytes(random, data, others)
        return dumps(random, mutate_tree(random, tree, [parsed(other) for other in random.sample(others, 1)], known))

    return mutate


def mutate_safetensors(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A safetensors file with another header, of the length that stands before it, or with other bytes."""
    length = int.from_bytes(data[:8], "little")
    tree, rest = parsed(data[8 : 8 + length]), data[8 + length :]
    if tree is None or random.random() < 0.1:
        return mutate_bytes(random, data, others)
    other = random.choice(others)
    header = dumps(random, mutate_tree(random, tree, [parsed(other[8 : 8 + int.from_bytes(other[:8], "little")])]))
    if random.random() < 0.1:
        rest = random.choice((b"", rest[:-1], rest + b"\0", rest * 2))
    return len(header).to_bytes(8, "little") + header + rest


# Templates

NAMES = [
    *(
        "messages",
        "add_generation_prompt",
        "bos_token",
        "eos_token",
        "tools",
        "documents",
        "message",
        "loop",
        "ns",
        "x",
    ),
    *("messages[0]", "messages[-1]", "messages[0].content", "messages[0]['role']", "message.content", "loop.index0"),
    *("loop.previtem", "self", "varargs", "caller", "true", "none", "namespace", "dict", "range", "lipsum", "cycler"),
    *("joiner", "raise_exception", "strftime_now", "''.format", "messages.append", "x.__class__", "message.items"),
]
LITERALS = [
    *(
        "''",
        "'a'",
        "'\\n'",
        "'<|end|>'",
        "' '",
        "'\\ud800'",
        "'\\x1b[2J'",
        "0",
        "1",
        "-1",
        "2",
        "9",
        "99",
        "10**9",
        "10**400",
    ),
    *(
        "1.5",
        "[]",
        "{}",
        "[1, 2]",
        "{'a': 1}",
        "()",
        "none",
        "true",
        "range(9)",
        "range(10**9)",
        "'a' * 10**9",
        "9**(9**9)",
    ),
]
FILTERS = [
    *(
        "abs",
        "attr('a')",
        "batch(2)",
        "batch(10**9)",
        "capitalize",
        "center(9)",
        "center(10**9)",
        "count",
        "d",
        "default('')",
    ),
    *(
        "dictsort",
        "e",
        "escape",
        "filesizeformat",
        "first",
        "float",
        "forceescape",
        "format(1)",
        "format(x, x)",
        "groupby('role')",
    ),
    *(
        "indent",
        "indent(10**9)",
        "int",
        "items",
        "join",
        "join(',')",
        "join('a' * 10**6)",
        "last",
        "length",
        "list",
        "lower",
    ),
    *(
        "map(attribute='role')",
        "map('upper')",
        "max",
        "min",
        "pprint",
        "random",
        "reject",
        "rejectattr('a')",
        "replace('a', 'aa')",
    ),
    *(
        "replace('', 'a' * 999)",
        "reverse",
        "round",
        "round(2)",
        "safe",
        "select",
        "selectattr('role', 'equalto', 'user')",
        "slice(3)",
    ),
    *(
        "slice(10**9)",
        "sort",
        "string",
        "striptags",
        "sum",
        "title",
        "tojson",
        "tojson(indent=2)",
        "tojson(indent=10**9)",
        "trim",
    ),
    *(
        "truncate(3)",
        "truncate(10**9)",
        "unique",
        "upper",
        "urlencode",
        "urlize",
        "wordcount",
        "wordwrap(1)",
        "xmlattr",
        "counted",
    ),
]
TESTS = [
    "defined",
    "string",
    "mapping",
    "iterable",
    "none",
    "number",
    "sameas(x)",
    "divisibleby(0)",
    "in(messages)",
    "filter",
]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "in", "not in", "and", "or"]
TOKEN = re.compile(r"\{%-?|-?%\}|\{\{-?|-?\}\}|\{#|#\}|'[^']*'|\w+|\s+|.", re.DOTALL)


def expression(random: Random, depth: int = 3) -> str:
    """A jinja2 expression; most are accepted by the parser."""
    if depth == 0:
        return random.choice(random.choice((NAMES, LITERALS)))
    inner = lambda: expression(random, random.randrange(depth))  # noqa: E731
    match random.randrange(11):
        case 0 | 1 | 2:
            return f"{inner()}|{random.choice(FILTERS)}"
        case 3 | 4:
            return f"({inner()} {random.choice(OPERATORS)} {inner()})"
        case 5:
            return f"({inner()} is {random.choice(TESTS)})"
        case 6:
            return f"{random.choice(NAMES)}({', '.join(inner() for _ in range(random.randrange(3)))})"
        case 7:
            return f"{inner()}[{inner()}:{inner()}:{inner()}]" if random.random() < 0.5 else f"{inner()}[{inner()}]"
        case 8:
            return f"({inner()} if {inner()} else {inner()})"
        case 9:
            return f"[{inner()}, {inner()}]"
        case _:
            return random.choice(random.choice((NAMES, LITERALS)))


def statement(random: Random, depth: int = 3) -> str:
    """A piece of a template."""
    body = lambda: "".join(statement(random, depth - 1) for _ in range(random.randrange(3))) if depth else "x"  # noqa: E731
    what = expression(random)
    match random.randrange(13):
        case 0 | 1 | 2:
            return "{{ " + what + " }}"
        case 3 | 4:
            return "{% for message in " + what + " %}" + body() + "{% endfor %}"
        case 5:
            return "{% if " + what + " %}" + body() + "{% else %}" + body() + "{% endif %}"
        case 6:
            return "{% set x = " + what + " %}"
        case 7:
            return "{% set ns = namespace(x=" + what + ") %}{% set ns.x = ns.x + " + what + " %}"
        case 8:
            return "{% set x %}" + body() + "{% endset %}"
        case 9:
            return "{% macro m(x=1) %}" + body() + "{% endmacro %}{{ m(" + what + ") }}"
        case 10:
            return "{% filter " + random.choice(FILTERS) + " %}" + body() + "{% endfilter %}"
        case 11:
            return "{% generation %}" + body() + "{% endgeneration %}"
        case _:
            odd = (
                "{% break %}",
                "{% continue %}",
                "{% raw %}{{{% endraw %}",
                "{# #}",
                "{% include 'x' %}",
                "{% import 'x' as x %}",
            )
            more = ("{% call m() %}x{% endcall %}", "{% extends 'x' %}", "{% block a %}{% endblock %}", "{% do x %}")
            return random.choice((*odd, *more, "{% with x = " + what + " %}" + body() + "{% endwith %}"))


def mutate_template(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """A chat template with some tokens changed, pieces inserted, or written anew from the grammar."""
    if random.random() < 0.05:
        return mutate_bytes(random, data, others)
    if random.random() < 0.3:
        return "".join(statement(random) for _ in range(random.randint(1, 4))).encode("utf-8", "surrogatepass")
    tokens = TOKEN.findall(data.decode("utf-8", "replace"))
    for _ in range(random.choice((1, 1, 2, 4))):
        at = random.randint(0, len(tokens))
        match random.randrange(7):
            case 0:
                tokens[at : at + 1] = []
            case 1:
                tokens[at : at + 1] = [expression(random)]
            case 2:
                tokens[at:at] = [statement(random)]
            case 3:
                tokens[at:at] = ["|" + random.choice(FILTERS)]
            case 4:
                tokens[at:at] = random.sample(tokens, min(len(tokens), 3))
            case 5:
                tokens[at : at + 1] = [random.choice((*STRINGS, *LITERALS))]
            case _:
                end = random.randint(at, len(tokens))
                tokens[at:end] = tokens[at:end] * random.choice((0, 2, FEW))
    return "".join(tokens).encode("utf-8", "surrogatepass")
