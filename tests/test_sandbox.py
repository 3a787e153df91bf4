"""What a chat template can do in its sandbox."""

from datetime import datetime

import pytest

from npllm.checkpoint.chat_template import ChatRenderer
from npllm.errors import ModelFileError


def user(text):
    return [{"role": "user", "content": text}]


def rendered(template, messages=(), **special_tokens):
    return ChatRenderer(template, special_tokens)(messages, True)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}{{ nothing }}", "<s>Hello"),
        ("{{ tools is none and documents is none and add_generation_prompt }}", "True"),
        ("{{ {'b': '<é>', 'a': [1]} | tojson }}", '{"b": "<é>", "a": [1]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{{ strftime_now('%Y') }}", str(datetime.now().year)),
        ("{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}", "1"),
        ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% endfor %}", "13"),
        (
            "{% for i in 'abc' %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}",
            "1/3False 2/3False 3/3True ",
        ),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{% else %}none{% endfor %}", "a1"),
        ("{% for x in nothing %}{% else %}none{% endfor %}", "none"),
        ("{% for x in [1, [2, [3]]] recursive %}{{ x if x is number else loop(x) }}{% endfor %}", "123"),
        (
            "{% set ns = namespace(self=1, n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
        ("{{ dict(a=1).a }}{{ dict({'a': 2}, b=3).b }}", "13"),
        ("  {% if true %}\n  a\n  {% endif %}\nb", "  a\nb"),
    ],
)
def test_what_a_template_can_do(template, text):
    assert rendered(template, user("Hello"), bos_token="<s>") == text


def test_a_template_adds_a_limited_text_to_the_messages():
    with pytest.raises(ModelFileError, match="a conversation of 600000 characters, more than 500020; "):
        rendered("{{ 'a' * 600000 }}", user("Hello"))
    long = "b" * 600_000
    assert rendered("{{ messages[0].content }}", user(long)) == long
