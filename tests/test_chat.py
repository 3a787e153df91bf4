"""A conversation over one KV cache: the cache saves work and changes nothing else; unsaid text does not count."""

import importlib
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
from checkpoints import END, write_folder
from hypothesis import given
from hypothesis import strategies as st

import npllm
from npllm.apps.chat import Chat, common_prefix
from npllm.errors import ModelFileError, UsageError
from npllm.tokenizer import Tokenizer

loop = importlib.import_module("npllm.loop")
TURNS = ["Hello, you!", "And then? 1234", "the end of it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_folder(path, max_position_embeddings=512)
    return path


@pytest.fixture
def lm(folder):
    return npllm.load(folder)


@pytest.fixture(scope="module")
def lm_once(folder):
    return npllm.load(folder)


@pytest.fixture
def prefilled(lm):
    """The number of tokens computed in each pass, and the model that counts them."""
    counts = []

    def counting(ids, *arguments, **options):
        counts.append(len(ids))
        return lm.transform(ids, *arguments, **options)

    return counts, lm._replace(transform=counting)


def talk(chat, *turns, **options):
    """The replies to these turns."""
    return ["".join(step.text for step in chat.reply(turn, **options)) for turn in turns]


def test_a_reply_is_what_generate_makes_of_the_whole_conversation(lm):
    chat, messages = Chat(lm, "Be brief."), [{"role": "system", "content": "Be brief."}]
    for turn in TURNS:
        messages.append({"role": "user", "content": turn})
        expected = npllm.generate(lm, lm.tokenizer.chat_ids(messages), max_new_tokens=30).text
        messages.append({"role": "assistant", "content": expected})
        assert talk(chat, turn, max_new_tokens=30) == [expected]
    assert chat.messages == messages


def test_only_what_is_new_is_prefilled(prefilled):
    prefilled, lm = prefilled
    chat = Chat(lm)
    talk(chat, TURNS[0], max_new_tokens=4)
    first = len(lm.tokenizer.chat_ids(chat.messages[:1]))
    assert prefilled == [first, 1, 1, 1]
    assert chat.cache["length"] == len(chat.cached_ids) == first + 3

    held = common_prefix(chat.cached_ids, chat.ids_with(TURNS[1]))
    assert held >= first, "what was computed for the first turn is the beginning of the second"
    prefilled.clear()
    talk(chat, TURNS[1], max_new_tokens=1)
    assert prefilled == [len(chat.cached_ids) - held]


def test_the_cache_holds_the_keys_and_values_of_its_ids(lm):
    chat = Chat(lm)
    talk(chat, *TURNS, max_new_tokens=5)
    fresh = npllm.cache.empty_cache(lm.config, len(chat.cached_ids), like=lm.weights.norm)
    npllm.transform(np.array(chat.cached_ids), lm, fresh)
    for name in ("keys", "values"):
        for held, computed in zip(chat.cache[name], fresh[name], strict=True):
            np.testing.assert_allclose(held[:, : chat.cache["length"]], computed, rtol=1e-4, atol=1e-4)


def test_the_cache_grows_by_doubling_and_no_further_than_the_context(lm):
    chat, capacities = Chat(lm), [0]
    while len(chat.cached_ids) < 400:
        for _ in chat.reply("Go on, and on.", max_new_tokens=40):
            capacity = chat.cache["keys"][0].shape[1]
            if capacity != capacities[-1]:
                capacities.append(capacity)
    assert all(later == 512 or later >= 2 * earlier for earlier, later in pairwise(capacities))
    assert capacities[-1] == 512


def test_a_reply_that_is_not_read_to_its_end_is_kept_as_far_as_it_was_read(lm):
    chat, said = Chat(lm), ""
    with closing(chat.reply(TURNS[0], max_new_tokens=50)) as reply:
        while len(said) < 5:
            said += next(reply).text
    assert chat.messages == [{"role": "user", "content": TURNS[0]}, {"role": "assistant", "content": said}]
    expected = npllm.generate(lm, chat.ids_with(TURNS[1]), max_new_tokens=10).text
    assert talk(chat, TURNS[1], max_new_tokens=10) == [expected]


def test_a_reply_that_was_interrupted_before_it_said_anything_did_not_happen(lm):
    chat = Chat(lm)
    talk(chat, TURNS[0], max_new_tokens=5)
    before = list(chat.messages)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    chat.lm = lm._replace(transform=interrupted)
    with pytest.raises(KeyboardInterrupt):
        talk(chat, TURNS[1])
    chat.lm = lm
    assert chat.messages == before
    expected = npllm.generate(lm, chat.ids_with(TURNS[2]), max_new_tokens=10).text
    assert talk(chat, TURNS[2], max_new_tokens=10) == [expected]


def test_an_empty_reply_that_ended_is_a_reply(lm, monkeypatch):
    monkeypatch.setattr(loop, "choose", lambda *_, **__: np.asarray(END))
    chat = Chat(lm)
    assert talk(chat, TURNS[0]) == [""]
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_reset_forgets_everything_but_the_system_message(lm):
    chat = Chat(lm, "Be brief.")
    first = talk(chat, TURNS[0], max_new_tokens=10)
    talk(chat, TURNS[1], max_new_tokens=10)
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.cache["length"] == 0
    assert talk(chat, TURNS[0], max_new_tokens=10) == first


def test_a_turn_that_does_not_fit_is_refused_and_forgotten(lm):
    chat = Chat(lm)
    with pytest.raises(UsageError, match=r"too long: \d+ tokens, but .* context of 512 has room for 511"):
        talk(chat, "x" * 512)
    assert chat.messages == []
    assert len(talk(chat, "x", max_new_tokens=3)) == 1


def test_a_reply_ends_where_the_context_does_without_a_warning(lm):
    chat = Chat(lm)
    made = list(chat.reply("x" * 480))
    assert made[-1].finish_reason == "length"
    assert len(chat.cached_ids) + 1 == 512


def test_wrong_options_leave_the_conversation_as_it_was(lm):
    chat = Chat(lm)
    talk(chat, TURNS[0], max_new_tokens=5)
    before = list(chat.messages)
    with pytest.raises(UsageError, match="temperature"):
        talk(chat, TURNS[1], temperature=-1.0)
    assert chat.messages == before
    assert len(chat.cached_ids) == chat.cache["length"]


def fresh(lm, turns, **options):
    """The last reply to these turns in a conversation that has never been changed."""
    return talk(Chat(lm), *turns, **options)[-1]


def test_after_undo_the_next_reply_is_that_of_a_conversation_without_the_turn(lm):
    chat = Chat(lm)
    talk(chat, TURNS[0], TURNS[1], max_new_tokens=20)
    assert chat.undo() == TURNS[1]
    assert [message["content"] for message in chat.messages[::2]] == [TURNS[0]]
    assert talk(chat, TURNS[2], max_new_tokens=20) == [fresh(lm, [TURNS[0], TURNS[2]], max_new_tokens=20)]
    assert (chat.undo(), chat.undo()) == (TURNS[2], TURNS[0])
    assert talk(chat, TURNS[1], max_new_tokens=20) == [fresh(lm, [TURNS[1]], max_new_tokens=20)]


def test_without_a_turn_there_is_none_to_undo_or_retry(lm):
    chat = Chat(lm, "Be brief.")
    for action in (chat.undo, lambda: list(chat.retry())):
        with pytest.raises(UsageError, match="there is no turn yet"):
            action()
    assert chat.messages == chat.system


def test_a_retry_replies_to_the_same_turn_anew(lm):
    chat, how = Chat(lm), {"max_new_tokens": 20, "temperature": 1.5}
    talk(chat, TURNS[0], max_new_tokens=10)
    first = talk(chat, TURNS[1], seed=1, **how)
    again = "".join(step.text for step in chat.retry(seed=2, **how))
    assert first != [again]
    assert [message["content"] for message in chat.messages[2:]] == [TURNS[1], again]
    assert "".join(step.text for step in chat.retry(seed=1, **how)) == first[0]


def test_a_retry_that_fails_keeps_the_old_reply(lm):
    chat = Chat(lm)
    talk(chat, *TURNS[:2], max_new_tokens=5)
    before = [dict(message) for message in chat.messages]
    with pytest.raises(UsageError, match="temperature"):
        list(chat.retry(temperature=-1.0))
    with closing(chat.retry()) as reply:
        del reply  # closed before it said anything
    assert chat.messages == before


@pytest.mark.slow
@given(st.lists(st.sampled_from(["turn", "undo", "retry", "system", "resume"]), max_size=6))
def test_whatever_came_before_the_next_reply_is_that_of_a_fresh_conversation(lm_once, actions):
    chat = Chat(lm_once)
    for number, action in enumerate(actions):
        turns = chat.messages[len(chat.system) :]
        match action:
            case "turn":
                talk(chat, TURNS[number % 3], max_new_tokens=4)
            case "undo" if turns:
                chat.undo()
            case "retry" if turns:
                list(chat.retry(max_new_tokens=6))
            case "system":
                chat.resume([{"role": "system", "content": f"{number}"}, *turns])
            case "resume":
                chat.resume(turns[:2])
    expected = npllm.generate(lm_once, chat.ids_with("Hello"), max_new_tokens=6).text
    assert talk(chat, "Hello", max_new_tokens=6) == [expected]


USER, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([REPLY, USER], "expected user as the role of number 0, got 'assistant'"),
        ([{"role": "system", "content": "s"}, USER, USER], "expected assistant as the role of number 2, got 'user'"),
        ([USER, REPLY, {"role": "system", "content": "late"}], "expected user as the role of number 2, got 'system'"),
        ([USER], "expected a reply to each turn, got none to the last"),
        ([USER, {"role": "assistant", "content": 3}], "expected strings under role and content"),
        ([USER, None], "expected strings under role and content, got None"),
        ("Hello", "messages: expected a list of them"),
        ([{"role": "user", "content": "x" * 512}, REPLY], "the conversation is too long"),
    ],
)
def test_a_conversation_that_cannot_be_resumed_changes_nothing(lm, messages, message):
    chat = Chat(lm, "Be brief.")
    talk(chat, TURNS[0], max_new_tokens=5)
    before = [dict(one) for one in chat.messages]
    with pytest.raises(UsageError, match=message):
        chat.resume(messages)
    assert (chat.messages, chat.system) == (before, before[:1])


def test_a_resumed_conversation_is_a_copy_and_resets_to_its_system_message(lm):
    system, chat = {"role": "system", "content": "s"}, Chat(lm)
    mine = [dict(system), dict(USER), dict(REPLY)]
    chat.resume(mine)
    talk(chat, TURNS[0], max_new_tokens=2)
    assert mine == [system, USER, REPLY]
    chat.reset()
    assert chat.messages == [system]


def test_a_model_without_tokenizer_cannot_chat(lm):
    with pytest.raises(ModelFileError, match="tokenizer"):
        Chat(lm._replace(tokenizer=None))


def test_a_model_without_chat_template_cannot_chat(lm):
    with pytest.raises(UsageError, match="no chat template"):
        Chat(lm._replace(tokenizer=Tokenizer(lm.tokenizer.backend)))


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix_is_the_longest(a, b):
    length = common_prefix(a, b)
    assert a[:length] == b[:length]
    assert a[length : length + 1] != b[length : length + 1] or length == min(len(a), len(b))
