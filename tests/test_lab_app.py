"""Who may ask the lab, what they may send, and what ends their work."""

import http.client
import json
import re
import threading
import time

import jaxtyping
import pytest
from served import TOKEN, Client, served, tiny_lm

from npllm.inspect.page import lab_page
from npllm.lab import app
from npllm.lab.answers import ANSWERS, Lab
from npllm.lab.worker import Cancelled

HOSTILE = '</script><img src=x onerror=alert(1)>\u202e\x1b[31m\x00"'
RUN = {"prompt": "Hello"}


@pytest.fixture(scope="module")
def lab():
    return Lab(tiny_lm(), "tiny")


@pytest.fixture(scope="module")
def client(lab):
    with served(lab) as client:
        yield client


def test_the_page_needs_the_token_and_has_the_headers_that_protect_it(client: Client):
    host = {"Host": f"127.0.0.1:{client.port}"}
    page = client.send("GET", f"/?token={TOKEN}", host)
    assert (page.status, page.body) == (200, lab_page()[0].encode())
    policy = dict(rule.strip().split(" ", 1) for rule in page.headers["content-security-policy"].split(";"))
    closed = {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert {rule for rule, value in policy.items() if value == "'none'"} == closed
    assert policy["connect-src"] == "'self'"
    assert re.fullmatch("'sha256-[^' ]+'", policy["script-src"])
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "no-referrer"
    for path in ("/", "/?token=", "/?token=x", f"/?token={TOKEN}x", "/?token=%ff"):
        refused = client.send("GET", path, host)
        assert (refused.status, [*refused.json]) == (403, ["error"])
        assert TOKEN not in refused.json["error"]


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"X-Npllm-Token": None}, 403),
        ({"X-Npllm-Token": "another"}, 403),
        ({"X-Npllm-Token": "\xff"}, 403),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}, 403),
        ({"Host": None}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "https://127.0.0.1:{port}"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": None}, 415),
        ({"X-Npllm-Client": "a b"}, 400),
        ({"X-Npllm-Client": 65 * "a"}, 400),
    ],
    ids=str,
)
def test_a_request_that_is_not_the_pages_own_is_refused(client: Client, change, status):
    headers = client.headers()
    for name, value in change.items():
        headers.pop(name)
        if value is not None:
            headers[name] = value.format(port=client.port)
    refused = client.send("POST", "/api/run", headers, {"run": RUN})
    assert refused.status == status
    if "Host" not in change or change["Host"]:  # else the HTTP library refuses it
        assert [*refused.json] == ["error"]
        assert "\n" not in refused.json["error"]
        assert refused.headers["cache-control"] == "no-store"


def test_localhost_and_a_program_without_an_origin_may_ask(client: Client):
    local = f"localhost:{client.port}"
    headers = client.headers() | {"Host": local, "Origin": f"http://{local}"}
    assert client.send("POST", "/api/thumbs", headers, {"run": RUN}).status == 200
    del headers["Origin"]
    assert client.send("POST", "/api/thumbs", headers, {"run": RUN}).status == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff", 400),
        (b'{"run": NaN}', 400),
        (b"[" * 100_000, 400),
        (b'{"run": ' + b"1" * 10_000 + b"}", 400),
        (b'{"run": {"prompt": "\\ud800"}}', 400),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_malformed_request_is_refused(client: Client, body, status):
    refused = client.send("POST", "/api/run", client.headers(), body)
    assert (refused.status, [*refused.json]) == (status, ["error"])


@pytest.mark.parametrize("more", [0, 1])
def test_a_large_request_is_refused(client: Client, monkeypatch, more):
    body = json.dumps({"run": RUN}).encode()
    monkeypatch.setattr(app, "LARGEST", len(body) - more)
    answer = client.send("POST", "/api/thumbs", client.headers(), body)
    assert (answer.status, next(iter(answer.json))) == ((413, "error") if more else (200, "size"))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/run", 405),
        ("PUT", "/api/run", 405),
        ("OPTIONS", "/api/run", 405),
        ("POST", "/api/nothing", 404),
        ("POST", "/api/run/more", 404),
        ("GET", "/page.js", 404),
        ("GET", "/../SECURITY.md", 404),
        ("POST", f"/?token={TOKEN}", 405),
    ],
)
def test_other_paths_and_methods_are_refused(client: Client, method, path, status):
    refused = client.send(method, path, client.headers(), {} if method != "GET" else None)
    assert (refused.status, [*refused.json]) == (status, ["error"])


@pytest.mark.parametrize(
    ("name", "body", "error"),
    [
        ("run", {}, "run: expected an object, got None"),
        ("run", {"run": RUN, "more": 1}, "the request: expected the keys run, got 'more'"),
        ("run", {"run": {"prompt": ""}}, "the prompt is empty: expected at least one token"),
        ("run", {"run": {"prompt": 5}}, "prompt: expected a text, got 5"),
        ("run", {"run": {"ids": [1, 10**6]}}, "token 1: expected an id from 0 to"),
        ("run", {"run": RUN | {"other": {"prompt": ""}}}, "the second prompt is empty"),
        ("run", {"run": RUN | {"other": {"ids": [1] * 129}}}, "the second prompt is too long: 129 tokens"),
        ("run", {"run": {"prompt": "a", "chat": 1}}, "chat: expected True or False, got 1"),
        ("run", {"run": {"ids": [1] * 129}}, "the prompt is too long: 129 tokens"),
        ("generate", {"run": {"ids": [1] * 128}}, "the prompt is too long: 128 tokens"),
        ("generate", {"run": RUN, "temperature": -1}, "temperature: expected 0 (greedy) or more, got -1"),
        ("generate", {"run": RUN, "top": 1000}, "top: expected 0 to 100, got 1000"),
        ("run", {"run": RUN | {"edits": [{"layer": 3, "part": "attention"}]}}, "edit of attention: layer: expected"),
        ("run", {"run": RUN | {"edits": [{"part": "head"}]}}, "edits: expected the key layer"),
        ("run", {"run": RUN | {"edits": {}}}, "edits: expected a list, got {}"),
        ("run", {"run": RUN | {"patches": [{"layer": 0, "position": 0}]}}, "patches: expected a second text"),
        ("attention", {"run": RUN, "layer": 0, "head": 4}, "head: expected 0 to 3 (there are 4 heads), got 4"),
        ("attention", {"run": RUN, "layer": True, "head": 0}, "layer: expected a whole number, got True"),
        ("logits", {"run": RUN, "position": 5}, "position: expected 0 to 4, got 5"),
        ("lens", {"run": RUN, "positions": []}, "positions: expected 1 to 32 positions, got []"),
        ("attribution", {"run": RUN}, "token: expected the id of a token, got none"),
        ("patching", {"run": RUN, "token": 1}, "patching: expected a second text, got none"),
        (
            "patching",
            {"run": RUN | {"other": {"prompt": "Hi"}}, "token": 1},
            "patching: expected two texts with the same number of tokens, got 5 and 2",
        ),
    ],
)
def test_bad_input_gets_one_line(client: Client, name, body, error):
    answer = client.ask(name, **body)
    assert answer.status == 400
    assert answer.json["error"].startswith(error)
    assert "\n" not in answer.json["error"]


@pytest.mark.parametrize("scale", ["x", None, [1], 10**400], ids=lambda scale: repr(scale)[:6])
def test_a_scale_that_is_no_finite_number_is_the_users_error(client: Client, scale, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "off", True)  # else the tests' own check of types refuses it first
    answer = client.ask("run", run=RUN | {"edits": [{"layer": 0, "part": "attention", "scale": scale}]})
    assert answer.status == 400
    assert answer.json["error"].startswith("attention:0: scale: expected a finite number, got ")


def test_hostile_text_is_data(client: Client):
    answer = client.ask("run", run={"prompt": HOSTILE})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["text"] == HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b").replace("\x00", "\\x00")
    assert not {"\u202e", "\x1b"} & {*answer.body.decode()}


def test_a_bug_is_one_line_and_the_next_request_is_served(client: Client, monkeypatch):
    def broken(*_):
        raise RuntimeError("two\nlines")
        yield

    monkeypatch.setitem(ANSWERS, "lens", broken)
    answer = client.ask("lens", run=RUN)
    assert answer.status == 500
    assert answer.json["error"].startswith("a bug of npllm: RuntimeError: two lines")
    assert client.ask("thumbs", run=RUN).status == 200


# What ends the work


@pytest.fixture
def slow(monkeypatch):
    """A call "slow" that works until it is cancelled, and what happened to it."""
    events = {"begun": threading.Event(), "ended": threading.Event()}

    def work(lab, asked, tap):
        events["begun"].set()
        try:
            for count in range(2000):
                time.sleep(0.01)
                tap("x", None)
                if asked.get("stream"):
                    yield {"count": count}
            yield {"done": True}
        except Cancelled:
            events["ended"].set()
            raise
        except GeneratorExit:
            events["ended"].set()

    monkeypatch.setitem(ANSWERS, "slow", work)
    monkeypatch.setattr(app, "STREAMS", (*app.STREAMS, "slow"))
    return events


def test_a_newer_request_of_the_same_tab_cancels_the_older(client: Client, slow):
    answers = []
    older = threading.Thread(target=lambda: answers.append(client.ask("slow")))
    older.start()
    assert slow["begun"].wait(3)
    newer = client.begin("slow", stream=True)
    older.join(10)
    assert slow["ended"].is_set()
    assert (answers[0].status, answers[0].json) == (409, {"error": "cancelled by a newer request"})
    assert json.loads(newer.readline()) == {"count": 0}
    newer.close()


def test_a_closed_page_ends_its_work(client: Client, slow):
    connection = http.client.HTTPConnection("127.0.0.1", client.port)
    connection.request("POST", "/api/slow", "{}", client.headers())
    assert slow["begun"].wait(3)
    connection.close()
    assert slow["ended"].wait(3)


def test_a_page_closed_in_the_middle_of_an_answer_ends_its_work(client: Client, slow):
    stream = client.begin("slow", stream=True)
    assert json.loads(stream.readline()) == {"count": 0}
    stream.close()
    assert slow["ended"].wait(3)


def test_another_tab_is_answered_between_two_items_and_cancels_nothing(client: Client, slow):
    stream = client.begin("slow", stream=True)
    assert json.loads(stream.readline()) == {"count": 0}
    assert client.ask("thumbs", "another-tab", run=RUN).status == 200
    assert client.ask("attention", run=RUN, layer=0, head=0).status == 200
    assert not slow["ended"].is_set()
    assert "count" in json.loads(stream.readline())
    stream.close()
    assert slow["ended"].wait(3)
