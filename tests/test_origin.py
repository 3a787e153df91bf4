"""Text with origins: what str computes, and no character of a message is ever taken for the template's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizer_cases import tokenizer

from npllm.checkpoint import sandbox
from npllm.checkpoint.chat_template import CHILD
from npllm.checkpoint.origin import MESSAGES, TEMPLATE, UNKNOWN, Number, Text, known
from npllm.text.chat_ids import Part, controls
from npllm.tokenizer import Tokenizer

WORDS = st.text("aA b\n\t\rß<|.İŉ", max_size=6)


def answer(request):
    """What the sandbox answers, in the process that renders."""
    return CHILD.ask(request, 30.0)


def marked(text, origins):
    return Text(text, "".join(map(chr, origins)))


TEXTS = WORDS.flatmap(
    lambda text: st.builds(marked, st.just(text), st.lists(st.integers(0, 3), min_size=len(text), max_size=len(text)))
)
ARGUMENTS = st.one_of(TEXTS, WORDS)
KEYS = st.one_of(st.none(), st.integers(-7, 7))
COUNTS = st.integers(-1, 3)
METHODS = {
    "strip lstrip rstrip": [st.one_of(st.none(), ARGUMENTS)],
    "removeprefix removesuffix": [ARGUMENTS],
    "upper lower title capitalize swapcase casefold splitlines": [],
    "split rsplit": [st.one_of(st.none(), ARGUMENTS.filter(bool)), COUNTS],
    "partition rpartition": [ARGUMENTS.filter(bool)],
    "replace": [ARGUMENTS, ARGUMENTS, COUNTS],
    "join": [st.lists(ARGUMENTS, max_size=4)],
    "center ljust rjust zfill expandtabs": [st.integers(-1, 9)],
    "translate": [st.dictionaries(st.sampled_from([97, 32, 10]), st.sampled_from(["", "xy", None, "b"]))],
    "__add__": [ARGUMENTS],
    "__mul__ __rmul__": [COUNTS],
    "__getitem__": [st.builds(slice, KEYS, KEYS, st.sampled_from([None, 1, 2, -1, -2]))],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for names in METHODS for name in names.split()])
@given(data=st.data(), text=TEXTS)
def test_a_method_computes_what_str_computes(name, data, text):
    [strategies] = [found for names, found in METHODS.items() if name in names.split()]
    args = [data.draw(strategy) for strategy in strategies]
    got = getattr(text, name)(*args)
    assert got == getattr(str(text.encode(), "utf-8"), name)(*args)
    for piece in got if isinstance(got, (list, tuple)) else [got]:
        if isinstance(piece, Text):
            assert len(piece._origins) == len(piece)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["%s|%s", "%5s%-4s", "%r%.2s", "%%%s%s%%", "%s%%%s"])
@given(values=st.tuples(ARGUMENTS, ARGUMENTS))
def test_the_percent_operator_computes_what_str_computes(form, values):
    got = Text(form, TEMPLATE) % values
    assert got == form % values
    assert len(got._origins) == len(got)


def test_a_plain_text_has_no_known_origin():
    assert Text("ab")._origins == 2 * chr(UNKNOWN)


def origins_of(template, *contents, **special):
    """The rendered text and its origins: T the template, a digit for a message, ? unknown."""
    messages = [{"role": "user", "content": content} for content in contents]
    made = answer([template, special, messages, True])
    assert "parts" in made, made
    letters = {-1: "T", -2: "?"}
    parts = made["parts"]
    return "".join(text for _, text in parts), "".join(letters.get(o, str(o)) * len(text) for o, text in parts)


C = "messages[0].content"


@pytest.mark.parametrize(
    ("template", "content", "text", "origins"),
    [
        ("a{{ X }}b", "xy", "axyb", "T00T"),
        ("{{ X.replace('/n', '') }}", "x/ny", "xy", "00"),
        ("{{ X | replace('-', '<>') }}", "x-y", "x<>y", "0TT0"),
        ("{{ 'a-b' | replace('-', X) }}", "xy", "axyb", "T00T"),
        ("{{ 'axb' | replace(X, '') }}", "x", "ab", "??"),  # a message chose what is left
        ("{{ 'abc'[X | length] }}", "x", "b", "?"),
        ("{{ 'abc'[1] }}{{ 'abc'[-1:] }}{{ X[1:] }}", "xy", "bcy", "TT0"),
        ("{{ ('a' ~ X ~ 1) * 2 }}", "x", "ax1ax1", "T0TT0T"),
        ("{{ X ~ messages | length ~ X | length }}", "x", "x11", "0??"),
        ("{{ '<%s>' % X }}{{ '<%s|%5s>' % (X, 'b') }}", "x", "<x><x|    b>", "T0TT0TTTTTTT"),
        ("{{ '<%s>' | format(X) }}{{ '<%(a)s>' | format(a=X) }}", "x", "<x><x>", "T0TT0T"),
        ("{{ '<{}{x}>'.format(X, x='b') }}{{ '<{0:>2}>'.format(X) }}", "x", "<xb>< x>", "T0TTT??T"),
        ("{{ '%c%d' % (60, X | length) }}", "x", "<1", "T?"),
        ("{{ '<{a}>'.format_map({'a': X}) }}", "x", "<x>", "T0T"),
        ("{{ [X, 'b'] | join('-') }}{{ ['b', X] | join }}{{ '-'.join([X, 'b']) }}", "x", "x-bbxx-b", "0TTT00TT"),
        ("{{ X | upper }}{{ 'a' | upper }}{{ X.title() }}", "xß", "XSSAXß", "???T00"),
        ("{% set v %}a{{ X }}{% endset %}{{ v }}", "x", "ax", "T0"),
        ("{% filter upper %}a{{ X }}{% endfilter %}", "x", "AX", "T0"),
        ("{% macro m(v) %}a{{ v }}{{ caller() }}{% endmacro %}{% call m(X) %}b{% endcall %}", "x", "axb", "T0T"),
        ("{% for c in X %}{{ loop.index }}{{ c }}{{ loop.previtem }}{% endfor %}", "xy", "1x2yx", "T0T00"),
        (
            "{% set ns = namespace(t='') %}{% for c in X %}{% set ns.t = c ~ ns.t %}{% endfor %}{{ ns.t }}",
            "xy",
            "yx",
            "00",
        ),
        ("{{ {'k': X}.k }}{% for k in {X: 1} %}{{ k }}{% endfor %}", "x", "xx", "00"),
        ("{{ X.split('-')[-1] }}{{ 'a-b'.split('-') | last }}", "x-y", "yb", "0T"),
        ("{{ X | trim }}{{ ' a ' | trim }}{{ X.strip() }}", " x ", "xax", "0T0"),
        ("{{ X | first }}{{ X | list | join }}{{ X | string }}", "xy", "xxyxy", "00000"),
        ("{{ X | sort | join }}{{ [X, 'a'] | map('upper') | join }}", "yx", "xyYXA", "0000T"),
        ("{{ X | default('b') }}{{ nothing | default('b') }}", "x", "xb", "0T"),
        ("{{ X | tojson }}{{ 'a' | tojson }}{{ [X] }}{{ ['a'] }}", "x", "\"x\"\"a\"['x']['a']", "???TTT?????TTTTT"),
        ("{{ X | e }}{{ X | urlencode }}{{ X | safe }}{{ 'a' | safe }}", "x", "xxxa", "??0T"),
        ("{{ 'a' | e ~ 'b' }}{% autoescape true %}c{% endautoescape %}", "x", "abc", "?TT"),
        ("{{ strftime_now('a') }}{{ strftime_now(X) }}", "x", "ax", "T?"),
        ("{{ X.encode() | first }}{{ X | int + 1 }}{{ '7' | int + 1 }}", "5", "5368", "???T"),
        ("{% for n in [X | int, 2] %}{{ loop.previtem }}{{ loop.index }}{% endfor %}", "5", "152", "T?T"),
        ("{{ messages[0].role }}{% for k in messages[0] %}{{ k }}{% endfor %}", "x", "userrolecontent", "T" * 15),
        ("{% block b %}a{{ X }}{% endblock %}{{ self.b() }}", "x", "axax", "T0T0"),
        ("{{ joiner(X)() }}{% set j = joiner(X) %}{{ j() }}{{ j() }}{{ cycler(X, 'a').next() }}", "x", "xx", "00"),
        ("{{ bos }}{{ '|'.join(X.splitlines()) }}{{ X.partition('\n')[0] }}", "x\ny", "sx|yx", "T0T00"),
        ("{{ X.lstrip('x').removeprefix('y').rstrip('x').removesuffix('y') }}", "xyzyx", "z", "0"),
        ("{{ 'abc'.translate({97: X}) }}{{ 'abc'.translate({97: 'x'}) }}", "x", "xbcxbc", "??????"),
    ],
)
def test_each_character_knows_who_wrote_it(template, content, text, origins):
    assert origins_of(template.replace("X", C), content, bos="s") == (text, origins)


def test_roles_that_templates_make_control_tokens_of():
    template = "{{ '<|' + messages[0].role + '|>' }}"
    for role, origins in (("user", "TTTTTTTT"), ("endoftext", "TT" + "0" * 9 + "TT")):
        made = answer([template, {}, [{"role": role, "content": ""}], True])
        assert "".join({-1: "T"}.get(o, str(o)) * len(t) for o, t in made["parts"]) == origins


def test_known_values():
    assert known(Text("a", TEMPLATE), Number(1), True, None, [Text("", UNKNOWN), {Text("a", TEMPLATE): Number(2)}])
    for value in (
        "a",
        1,
        1.5,
        Text("a"),
        Text("a", MESSAGES),
        [1],
        {"a": Number(1)},
        (x for x in ""),
        [Number(1)] * 1001,
    ):
        assert not known(Number(1), value)


# Random templates. Messages have letters from Unicode's private use area, so that whatever a template does with them,
# they are recognized in the result.
USERS = ["messages[0].content", "messages[1].content"]
ATOMS = [*USERS, "'<|im_end|>'", "'<|im_'", "'end|>'", "' a-b '", "'A\n'", "messages[0].role", "7"]
ONE = [
    *(
        "{}|upper",
        "{}|trim",
        "({}|string)[::-1]",
        "({}|string)[1:]",
        "({}|string).split('-')|join('+')",
        "{}|replace('a', '')",
    ),
    *(
        "{}|list|join",
        "{}|e",
        "{}|tojson",
        "'%s'|format({})",
        "'<{{}}>'.format({})",
        "({}|string)*2",
        "({}|string)|first",
    ),
    *(
        "{}|string|last",
        "{}|string|sort|join",
        "{}|string|map('upper')|join",
        "{}|title",
        "{}|capitalize",
        "{}|center(9)",
    ),
    *("{}|urlencode", "{}|string|wordwrap(3)", "{}|indent", "{}|string|reverse", "{}|string|batch(2)|map('join')|join"),
    *(
        "{}|string|slice(2)|map('join', '|')|join",
        "{}|string|groupby(0)|map('last')|map('join')|join",
        "{}|string|unique|join",
    ),
    *(
        "{{'k': {}}}.k",
        "{{{}: 1}}|list|join",
        "{{{}: 1}}|first",
        "[{}, 1]|string",
        "{}|default('b')",
        "{}|striptags",
        "{}|safe",
    ),
    *(
        "{}|string|xmlattr if false else {}|string",
        "dict(a={}).a",
        "{}|pprint",
        "('%s' % {})",
        "('%(a)5s' % {{'a': {}}})",
    ),
    *(
        "{}|truncate(3, true, '')",
        "({}|string).encode()|string",
        "({}|string|length)",
        "({}|string).zfill(5)",
        "{}|forceescape",
    ),
    *(
        "({}|string).translate({{97: 'b'}})",
        "({}|string).expandtabs(2)",
        "({}|string).title().swapcase()",
        "strftime_now({}|string)",
    ),
    *(
        "({}|string).partition('-')|join",
        "({}|string).splitlines()|join",
        "({}|string).rsplit('-', 1)|join",
        "{}|string|select|join",
    ),
    *(
        "{}|string|tojson|string",
        "({}|string).format()",
        "namespace(x={}).x",
        "[{}]|map('string')|sum(start='')",
        "{}|wordcount",
    ),
]
ONE = [form for form in ONE if "forceescape" not in form and "{}" in form and form.count("{}") == 1]
TWO = [
    *("({} ~ {})", "(({}|string) + ({}|string))", "({}|string)|replace({}, '')", "({}|string).join([{}, 'x', {}])"),
    *(
        "'%s|%s' % ({}, {})",
        "({}|string).replace('a', {}|string)",
        "({}|string).replace({}|string, '')",
        "({} if true else {})",
    ),
    *(
        "'{{}}{{}}'.format({}, {})",
        "[{}, {}]|join('-')",
        "[{}, {}]|sort|join",
        "({}|string).strip({}|string)",
        "(({}|string) % {})",
    ),
    *(
        "({}|string).split({}|string)|join('x')",
        "[{}, {}]|min",
        "{}|default({}, true)",
        "cycler({}, {}).next()",
        "({}|indent({}|length))",
    ),
]
TWO = [form for form in TWO if form.count("{}") == 2]
OUTPUTS = [
    *(
        "{{{{ {} }}}}",
        "{{% set v %}}a{{{{ {} }}}}{{% endset %}}{{{{ v }}}}",
        "{{% filter upper %}}{{{{ {} }}}}b{{% endfilter %}}",
    ),
    *(
        "{{% for c in {}|string %}}{{{{ c }}}}{{{{ loop.index }}}}{{% endfor %}}",
        "{{% if {} %}}<|im_end|>{{% endif %}}",
    ),
    "{{% macro m(x) %}}<{{{{ x }}}}{{{{ caller() }}}}{{% endmacro %}}{{% call m({}) %}}|{{% endcall %}}",
    "{{% set ns = namespace(t='') %}}{{% for c in {}|string %}}{{% set ns.t = ns.t + c %}}{{% endfor %}}{{{{ ns.t }}}}",
    "{{% with w = {} %}}{{{{ w }}}}{{% endwith %}}",
    "{{% autoescape true %}}{{{{ {} }}}}{{% endautoescape %}}",
]


def expressions(ones, twos):
    return st.recursive(
        st.sampled_from(ATOMS),
        lambda inner: st.one_of(
            st.builds(lambda form, a: form.format(f"({a})"), st.sampled_from(ones), inner),
            st.builds(lambda form, a, b: form.format(f"({a})", f"({b})"), st.sampled_from(twos), inner, inner),
        ),
        max_leaves=4,
    )


def templates(ones=ONE, twos=TWO):
    outputs = st.builds(str.format, st.sampled_from(OUTPUTS), expressions(ones, twos))
    return st.lists(st.one_of(outputs, st.sampled_from(["<|im_start|>", "<|im_", "|>"])), min_size=1, max_size=4).map(
        "".join
    )


REFERENCE = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[sandbox.GenerationBlock, "jinja2.ext.loopcontrols"]
)
REFERENCE.filters["tojson"] = sandbox.to_json
REFERENCE.globals |= {"strftime_now": sandbox.datetime.now().strftime, "namespace": sandbox.PlainNamespace}


def reference(template, messages):
    try:
        return REFERENCE.from_string(template).render(messages=messages, add_generation_prompt=True)
    except Exception as error:  # noqa: BLE001
        return type(error)


def turns(*contents):
    return [{"role": "user", "content": content} for content in contents]


PRIVATE = st.text("\ue000\ue001\ue002", max_size=5)


@pytest.mark.slow
@given(template=templates(), first=PRIVATE, second=PRIVATE)
def test_whatever_a_template_does_no_character_of_a_message_is_taken_for_its_own(template, first, second):
    made = answer([template, {}, turns(first, second), True])
    expected = reference(template, turns(first, second))
    if isinstance(expected, str):
        assert "".join(text for _, text in made["parts"]) == expected
    else:
        assert "failed" in made
    for origin, text in made.get("parts", []):
        assert origin != -1 or not set("\ue000\ue001\ue002") & set(text)


class Recorded:
    """A renderer that gives what a template made before."""

    def __init__(self, made):
        self.made = [Part(*part) for part in made["parts"]]

    def parts(self, messages, add_generation_prompt):
        return self.made


def ids_of(template, messages, made):
    return Tokenizer(tokenizer("bytes").backend, (), template, Recorded(made)).chat_ids(messages)


HOSTILE = st.lists(st.sampled_from(["<|im_end|>", "<|im_", "end|>", "a", "-", "<", "|", "x"]), max_size=4).map("".join)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model's chat template leaves out")
@given(template=templates(), first=HOSTILE, second=HOSTILE)
def test_whatever_a_template_does_no_control_token_comes_from_a_message(template, first, second):
    made = answer([template, {}, turns(first, second), True])
    expected = reference(template, turns(first, second))
    assert ("failed" in made) == (not isinstance(expected, str))
    if "failed" in made:
        return
    assert "".join(text for _, text in made["parts"]) == expected
    backend = tokenizer("bytes").backend
    written = [token.id for origin, text in made["parts"] if origin == -1 for token in controls(backend, text)]
    ids = ids_of(template, turns(first, second), made)
    control = {token.id for token in controls(backend, "<|im_start|><|im_end|>")}
    assert [i for i in ids if i in control] == written


EXACT = {
    *(
        "{}|upper",
        "{}|trim",
        "({}|string).split('-')|join('+')",
        "{}|replace('a', '')",
        "{}|list|join",
        "'%s'|format({})",
    ),
    *("'<{{}}>'.format({})", "({}|string)*2", "{}|default('b')", "({}|string)[1:]", "{}|safe", "{{'k': {}}}.k"),
    *("({} ~ {})", "(({}|string) + ({}|string))", "'%s|%s' % ({}, {})", "({} if true else {})", "[{}, {}]|join('-')"),
    *("'{{}}{{}}'.format({}, {})", "({}|string).replace('a', {}|string)"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model's chat template leaves out")
@given(
    template=templates([x for x in ONE if x in EXACT], [x for x in TWO if x in EXACT]),
    text=st.text("a-x >é", max_size=9),
)
def test_texts_without_control_tokens_have_the_ids_of_the_whole(template, text):
    if "autoescape" in template:
        return
    made = answer([template, {}, turns(text, text), True])
    if "parts" in made:
        whole = "".join(text for _, text in made["parts"])
        expected = tokenizer("bytes").backend.encode(whole, add_special_tokens=False).ids
        assert ids_of(template, turns(text, text), made) == expected
