"""Tokenizers compared with transformers' own on random texts, settings and chat messages."""

import json
import shutil

import pytest
from bridge import tool
from default_model import needs_default_model
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizer_cases import GOLDEN, HARMLESS, TEXTS, each_tokenizer, tokenizer

from npllm.checkpoint.chat_template import ChatRenderer
from npllm.checkpoint.folder_tokenizer import tokenizer_from_folder
from npllm.checkpoint.gguf_tokenizer import WORDS
from npllm.errors import UsageError
from npllm.text.chat_ids import controls
from npllm.text.stream import StoppingStream

pytestmark = [pytest.mark.oracle, pytest.mark.filterwarnings("default")]  # transformers issues warnings of its own


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[oracle]'")


@pytest.fixture(scope="module")
def theirs(transformers):
    """transformers' tokenizers, by the names that `tokenizer` takes."""
    known = {name: transformers.PreTrainedTokenizerFast.from_pretrained(GOLDEN / f"tokenizer-{name}") for name in NAMES}

    def find(name):
        if name not in known:
            known[name] = tool("make_tokenizer_golden").default_tokenizer()
        return known[name]

    return find


NAMES = ("bytes", "llama")


@each_tokenizer
@given(text=TEXTS)
def test_any_text_has_the_ids_that_transformers_gives(theirs, name, text):
    ids = theirs(name)(text).input_ids
    assert tokenizer(name).encode(text) == ids
    assert tokenizer(name).decode(ids) == theirs(name).decode(ids)
    assert tokenizer(name).decode(ids, True) == theirs(name).decode(ids, skip_special_tokens=True)
    assert tokenizer(name).pieces(ids) == theirs(name).convert_ids_to_tokens(ids)


@each_tokenizer
@given(data=st.data())
def test_any_ids_have_the_text_that_transformers_gives(theirs, name, data):
    ids = data.draw(st.lists(st.integers(0, len(tokenizer(name)) - 1)))
    assert tokenizer(name).decode(ids) == theirs(name).decode(ids)


PARTS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "a", " b", "<|", "|>", "im_", "\n", "<think>"]


@given(text=st.lists(st.sampled_from(PARTS), min_size=1, max_size=8), stop=st.lists(st.sampled_from(PARTS), min_size=1))
def test_generation_stops_where_transformers_stops(theirs, text, stop):
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[oracle]'")
    stops_at = pytest.importorskip("transformers.generation").StopStringCriteria(theirs("bytes"), "".join(stop[:3]))
    ids = [i for part in text for i in tokenizer("bytes").backend.encode(part, add_special_tokens=False).ids]
    expected = [n for n in range(1, len(ids) + 1) if stops_at(torch.tensor([ids[:n]]), None)[0]]
    stream = StoppingStream(tokenizer("bytes").backend, [], ["".join(stop[:3])])
    found = [n for n, i in enumerate(ids, 1) if stream.step(i, last=n == len(ids))[1]]
    assert found[:1] == expected[:1]


def messages_of(*roles):
    message = st.fixed_dictionaries({"role": st.sampled_from(roles), "content": HARMLESS})
    return st.lists(message, min_size=1, max_size=4)


@each_tokenizer
@given(messages=messages_of("user", "assistant"), prompt=st.booleans())
def test_any_conversation_has_the_ids_that_transformers_gives(theirs, name, messages, prompt):
    assume(not any(controls(tokenizer(name).backend, message["content"]) for message in messages))
    expected = theirs(name).apply_chat_template(messages, add_generation_prompt=prompt).input_ids
    assert tokenizer(name).chat_ids(messages, prompt) == expected


ADDED = {
    "content": "<|user|>",
    "lstrip": False,
    "normalized": False,
    "rstrip": False,
    "single_word": False,
    "special": True,
}
SETTINGS = {
    "as it is": {},
    "add_bos_token": {"add_bos_token": True},
    "no add_bos_token": {"add_bos_token": False},
    "add_bos_token null": {"add_bos_token": None},
    "both": {"add_bos_token": True, "add_eos_token": True},
    "add_bos_token without a bos": {"add_bos_token": True, "bos_token": None},
    "other tokens": {"bos_token": "<|user|>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True},
    "a new token": {"pad_token": "<pad>", "additional_special_tokens": ["<|tool|>", "<|end|>"]},
    "tokens as objects": {"eos_token": {"__type": "AddedToken", **ADDED, "content": "<eos>", "lstrip": True}},
    "other flags": {"added_tokens_decoder": {"763": ADDED}},
    "extra tokens": {"extra_special_tokens": ["<|tool|>", {"__type": "AddedToken", **ADDED, "content": "<eos>"}]},
    "extra tokens before additional ones": {
        "extra_special_tokens": ["<new>"],
        "additional_special_tokens": ["<|tool|>"],
    },
    "named extra tokens": {
        "extra_special_tokens": {"tool_token": "<|tool|>", "pad_token": "<pad>"},
        "x_token": "<new>",
    },
    "an extra token that is a piece": {"extra_special_tokens": {"x": "the"}},
    "an extra token that is not special": {
        "extra_special_tokens": [{"__type": "AddedToken", "content": "<new>", "special": False}]
    },
    "a new token with flags": {"added_tokens_decoder": {"770": ADDED | {"content": "<new>", "rstrip": True}}},
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("setting", SETTINGS)
@given(text=TEXTS)
def test_any_settings_have_the_ids_that_transformers_gives(transformers, tmp_path_factory, name, setting, text):
    ours, expected = with_settings(transformers, tmp_path_factory, name, setting)
    text += " <pad> <|tool|>\n <eos> <new>\n A <|user|>\n B</s>\n"
    assert ours.encode(text) == expected(text).input_ids
    assert ours.decode(ours.encode(text), True) == expected.decode(expected(text).input_ids, skip_special_tokens=True)
    assert ours.end_ids == ({expected.eos_token_id} if expected.eos_token else set())


MADE = {}


def with_settings(transformers, tmp_path_factory, name, setting):
    """npllm's and transformers' tokenizers from a folder with changed settings."""
    if (name, setting) not in MADE:
        folder = tmp_path_factory.mktemp("settings") / name
        shutil.copytree(GOLDEN / f"tokenizer-{name}", folder)
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | SETTINGS[setting]
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        # With a tokenizer.json, transformers 5 takes these two only from its caller; 4 read them from the file.
        explicit = {
            key: value for key, value in SETTINGS[setting].items() if key.startswith("add_") and value is not None
        }
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folder, **explicit)
        MADE[name, setting] = tokenizer_from_folder(folder), theirs
    return MADE[name, setting]


# As published: Llama 2's, Llama 3's, Mistral's, Gemma's, Zephyr's, Qwen2's and both of Phi-3.
TEMPLATES = {
    "llama 2": """\
{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "llama 3": """\
{% set loop_messages = messages %}{% for message in loop_messages %}\
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim \
+ '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}""",
    "mistral": """\
{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% if message['role'] == 'user' %}\
{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
{{ message['content'] + eos_token}}{% else %}\
{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}""",
    "gemma": """\
{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}\
{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}\
{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}""",
    "zephyr": """\
{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}""",
    "qwen 2, and some more of jinja2": """\
{%- if tools %}
    {{- 'tools' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- set ns = namespace(n=0) %}
{%- for message in messages %}{% generation %}{%- set ns.n = ns.n + 1 %}{% endgeneration %}{%- endfor %}
{{ ns.n }} {{ messages | tojson(indent=1) }} {{ dict(a=messages[0].role).a }}""",
    "phi 3, the first": """\
{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') %}\
{{'<|user|>' + '\n' + message['content'] + '<|end|>' + '\n' + '<|assistant|>' + '\n'}}\
{% elif (message['role'] == 'assistant') %}{{message['content'] + '<|end|>' + '\n'}}{% endif %}{% endfor %}""",
    "phi 3.5": """\
{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}\
{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}\
{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}\
{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}""",
}


@pytest.mark.parametrize("name", TEMPLATES)
@given(messages=messages_of("user", "assistant", "system"), prompt=st.booleans())
def test_a_chat_template_writes_what_it_writes_in_transformers(transformers, name, messages, prompt):
    template = TEMPLATES[name]
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    render = transformers.utils.chat_template_utils.render_jinja_template
    try:
        [expected], _ = render([messages], chat_template=template, add_generation_prompt=prompt, **special)
    except Exception as error:  # noqa: BLE001 - jinja2's errors, which transformers lets through
        with pytest.raises(UsageError, match=str(error).split("/")[0]):
            ChatRenderer(template, special)(messages, prompt)
    else:
        assert ChatRenderer(template, special)(messages, prompt) == expected


def test_the_rules_for_words_are_those_of_transformers(transformers):
    name = "transformers.integrations.gguf.gguf_tokenizer_mapping"
    mapping = pytest.importorskip(name, reason="this version of transformers has no such table")
    common = set(WORDS) & set(mapping.GGUF_PRE_TOKENIZER_SPLITS)
    assert common
    for pre in common:
        assert WORDS[pre] == (mapping.GGUF_PRE_TOKENIZER_SPLITS[pre],), pre


@needs_default_model
def test_the_default_models_end_ids_are_in_transformers_vocabulary(theirs):
    tokens = theirs("default-model").convert_ids_to_tokens(sorted(tokenizer("default-model").end_ids))
    assert tokens == ["<|endoftext|>", "<|im_end|>"]
