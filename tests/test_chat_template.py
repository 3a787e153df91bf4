"""Rendering a chat template: how it refuses a conversation, and how it fails."""

import pickle
import subprocess
import sys

import pytest
from tokenizer_cases import tokenizer

from npllm.checkpoint import chat_template
from npllm.checkpoint.chat_template import ChatRenderer
from npllm.checkpoint.child import Child
from npllm.errors import ModelFileError, UsageError
from npllm.tokenizer import Tokenizer


def user(text):
    return [{"role": "user", "content": text}]


def with_template(name, template, **special_tokens):
    """A tokenizer with another chat template."""
    return Tokenizer(tokenizer(name).backend, (), template, ChatRenderer(template, special_tokens))


def rendered(template, messages=(), **special_tokens):
    return ChatRenderer(template, special_tokens)(messages, True)


def test_a_template_can_refuse_a_conversation():
    template = "{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}"
    tokenizer = with_template("bytes", template)
    with pytest.raises(UsageError, match="the model's chat template refuses the messages: roles must alternate"):
        tokenizer.chat_ids([{"role": "assistant", "content": "Hello"}])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for message in messages %}", "TemplateSyntaxError"),
        ("{{ messages[3].content }}", "UndefinedError"),
        ("{{ nothing.more }}", "UndefinedError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ '\\ud800' }}", "UnicodeEncodeError"),
        ("{% for i in range(10**9) %}{{ i }}{% endfor %}", "OverflowError"),
        ("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}", "it takes more than 0.3 s"),
        ("{% macro f(n) %}{{ f(n - 1) + f(n - 1) if n > 0 }}{% endmacro %}{{ f(60) }}", "it takes more than 0.3 s"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ dict.fromkeys('a') }}", "UndefinedError"),
        ("{% set ns = namespace(_x=1) %}", "SecurityError"),
        ("{% set ns = namespace() %}{% set ns.__html__ = 1 %}", "SecurityError"),
    ],
)
def test_a_template_that_fails_is_refused(template, reason, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 0.3)
    with pytest.raises(ModelFileError, match=f"the model's chat template: expected the .* got none: {reason}"):
        rendered(template, user("Hello"))


def test_a_pickled_tokenizer_renders_in_another_process(tmp_path):
    (tmp_path / "tokenizer").write_bytes(pickle.dumps(tokenizer("bytes")))
    messages = user("Hello <|im_end|>")
    code = f"""
import pickle, pathlib
print(pickle.loads(pathlib.Path({str(tmp_path / "tokenizer")!r}).read_bytes()).chat_ids({messages!r}))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{tokenizer('bytes').chat_ids(messages)}\n"


def test_a_template_that_writes_nothing_is_refused_without_a_warning():
    with pytest.raises(ModelFileError, match="expected the conversation as text, got no text"):
        with_template("bytes", "{{ '' }}").chat_ids(user("Hello"))


@pytest.mark.parametrize(
    ("setting", "value", "template", "reason"),
    [
        ("SECONDS", 0.2, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "0.2 s"),
        ("CHILD", Child("npllm.checkpoint.sandbox", memory=2**28, output=1000), "{{ 'a' * 2000 }}", "0 MB"),
    ],
)
def test_the_limit_that_is_exceeded_is_named_and_the_next_rendering_succeeds(
    setting, value, template, reason, monkeypatch
):
    monkeypatch.setattr(chat_template, setting, value)
    with pytest.raises(ModelFileError, match=f"(takes|has) more than {reason}; give it a prompt, not messages"):
        rendered(template)
    assert rendered("{{ messages[0].content }}", user("Hello")) == "Hello"
    chat_template.CHILD.close()
