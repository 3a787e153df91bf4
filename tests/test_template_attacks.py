"""Chat templates that would take all memory or never end: each is refused in one line, in time."""

import time

import pytest

from npllm.checkpoint import chat_template
from npllm.checkpoint.chat_template import ChatRenderer
from npllm.errors import ModelFileError

# Refused at once, before anything large is made, on every platform.
HUGE = [
    "'a' * 10**9",
    "10**9 * 'a'",
    "'a' * 10**100",
    "[1] * 10**9",
    "(1, 2) * 10**9",
    "'ab'.encode() * 10**9",
    "9**(9**9)",
    "(-9)**(10**7)",
    "10**30000 * 10**30000",
    "range(10**9)",
    "range(10**9) | list",
    "range(10**9) | join",
    "'a'.center(10**9)",
    "'a'.ljust(10**9)",
    "'a'.rjust(10**9, 'b')",
    "'a'.zfill(10**9)",
    "'\\t'.expandtabs(10**9)",
    "'a' | center(10**9)",
    "'a\\nb' | indent(10**9)",
    "'ab' | batch(10**9, 'x') | list",
    "'ab' | slice(10**9) | list",
    "'%1000000000d' % 1",
    "'%-1000000000s' % 'a'",
    "'%.1000000000f' % 1.5",
    "'%*d' % (10**9, 1)",
    "'%1000000000s' | format('a')",
    "'{:1000000000}'.format(1)",
    "'{:>{}}'.format('a', 10**9)",
    "'{0:{1}}'.format(1, 10**9)",
    "'{a:1000000000}'.format_map({'a': 1})",
    "(messages[0].content | tojson).format() ~ '{:1000000000}'.format(2)",
    "[1] | tojson(indent=10**9)",
    "('a' * 10**6).replace('a', 'b' * 10**6)",
    "('a' * 10**6) | replace('a', 'b' * 10**6)",
    "('a' * 10**6).replace('', 'b' * 10**6)",
    "('b' * 10**6).join('a' * 10**6)",
    "('a' * 10**6) | join('b' * 10**6)",
    "('a' * 10**6).translate({97: 'b' * 10**6})",
    "('a' * 10**7) ~ ('a' * 10**7)",
    "('a' * 10**7) + ('a' * 10**7)",
    "[('a' * 10**7), ('a' * 10**7)] | join",
    "'%s%s' % ('a' * 10**7, 'a' * 10**7)",
    "'{}{}'.format('a' * 10**7, 'a' * 10**7)",
]
DOUBLING = [
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x * 2 %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('a', 'aa') %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "{% set n = namespace(x='ab') %}{% for i in range(99) %}{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
    "{% set ns = namespace(x=9) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{% macro f(x, n) %}{{ f(x ~ x, n - 1) if n else x }}{% endmacro %}{{ f('ab', 99) }}",
    "{% set x = 'a' * 10**7 %}{% for i in range(99) %}{{ x }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ " + "-" * 100_000 + "1 }}",
    "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "{% if true %}" * 2000,
    "{% if true %}" * 500 + "{% endif %}" * 500,
]
NESTED = "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
WIDE = "{% set x = 'a<b> http://a.b ' * 1000000 %}"
# Stopped by the limits of the process.
ENDLESS = [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n - 1) + f(n - 1) if n > 0 }}{% endmacro %}{{ f(60) }}",
    *(
        NESTED + x
        for x in (
            "{{ ns.x }}",
            "{{ ns.x | tojson }}",
            "{{ ns.x | pprint }}",
            "{{ ns.x | string }}",
            "{{ '%s' % ns.x }}",
        )
    ),
    *(
        NESTED + x
        for x in ("{{ ns.x | unique | list }}", "{{ '{}'.format(ns.x) }}", "{{ ns.x ~ '' }}", "{{ [ns.x] | join }}")
    ),
    *(
        WIDE + x
        for x in (
            "{{ x | wordwrap(1) }}",
            "{{ x | urlize }}",
            "{{ x | striptags }}",
            "{{ x | title }}",
            "{{ x | wordcount }}",
        )
    ),
    *(
        WIDE + x
        for x in (
            "{{ x | list | sort }}",
            "{{ x | list | pprint }}",
            "{{ x | batch(2) | list }}",
            "{{ x | unique | list }}",
        )
    ),
    *(
        WIDE + x
        for x in (
            "{{ x | urlencode | urlencode | urlencode }}",
            "{{ x | e | e | e | e }}",
            "{{ x | groupby(0) | list }}",
        )
    ),
    "{{ lipsum(n=100000) }}",
    "{{ lipsum(n=10**9) }}",
    "{{ lipsum(n=10**6, html=false, min=100, max=101) * 10**6 }}",
    "{% set ns = namespace(x=[]) %}{% for i in range(99) %}{% set ns.x = ns.x + ['a' * 10**7] %}{% endfor %}{{ ns.x }}",
    "{{ 1.5 | round(10**9, 'ceil') }}",
    "{{ 'a' | slice(10000) | list | string * 1000 }}",
    "{% set r = range(99999) %}{% for i in r %}{% set x = r | list %}{% for j in r %}{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='a') %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "{% for i in range(99999) %}{% for j in range(999) %}aaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ns.x + range(999) | list %}{% endfor %}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}",
    "{% set c = cycler(1) %}{% for i in range(9999) %}{% for j in range(9999) %}{{ c.next() }}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}{{ 'a' * 10**5 }}{% endfor %}",
    "x{{ 1 }}" * 500_000,
    "{% set x = 1 %}" * 200_000,
    "{{ 'a' }}" + "{# #}" * 2_000_000,
    "{{ " + "1 + " * 200_000 + "1 }}",
    "{{ " + "'a' ~ " * 200_000 + "'a' }}",
]


def refused(template, within, reason=".*"):
    started = time.perf_counter()
    start = "^the model's chat template: expected the conversation as text, got none: "
    with pytest.raises(ModelFileError, match=f"{start}{reason};"):
        ChatRenderer(template, {})([{"role": "user", "content": "Hello"}], True)
    assert time.perf_counter() - started < within


def some(templates):
    """A few of the templates; the others run in CI."""
    return [
        template if i % 6 == 0 else pytest.param(template, marks=pytest.mark.slow)
        for i, template in enumerate(templates)
    ]


@pytest.mark.parametrize("expression", some(HUGE))
def test_what_would_be_huge_is_refused_before_it_is_made(expression):
    refused(f"{{{{ {expression} }}}}", within=20, reason="OverflowError: .*")


@pytest.mark.parametrize("template", some(DOUBLING))
def test_a_template_that_grows_is_refused(template):
    refused(template, within=20)


@pytest.mark.slow
@pytest.mark.parametrize("template", ENDLESS)
def test_a_template_that_does_not_end_is_refused(template, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    refused(template, within=30)
