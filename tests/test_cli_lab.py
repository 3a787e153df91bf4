"""npllm lab: the address, the port, the browser, and Ctrl-C."""

import importlib
import re
import signal
import socket
import webbrowser

import pytest
from command_line import fails, unix
from served import Client

from npllm.errors import UsageError
from npllm.lab import server
from npllm.lab.server import free_port

command = importlib.import_module("npllm.cli.lab")


@pytest.fixture
def taken():
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_taken_port_is_replaced_by_the_next_free_one(taken):
    with free_port(taken) as listening:
        host, port = listening.getsockname()
        assert host == "127.0.0.1"
        assert taken < port < taken + server.TRIES


def test_without_a_free_port_it_says_so(taken, monkeypatch):
    monkeypatch.setattr(server, "TRIES", 1)
    with pytest.raises(UsageError, match=f"--port: {taken} and the next ports are all taken; --port 0 takes"):
        free_port(taken)


def test_a_port_that_may_not_be_opened_is_one_line(monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", forbidden)
    with pytest.raises(UsageError, match=r"--port: 127\.0\.0\.1:80 cannot be opened: Permission denied"):
        free_port(80)


@pytest.mark.parametrize("port", ["-1", "65536", "x"])
def test_an_impossible_port_is_refused(npllm, port):
    fails(npllm("lab", "--port", port), 2, "--port: (expected 0 to 65535, got|.*invalid int)|port")


def test_without_the_extra_one_line_says_what_to_install(npllm, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda library: None)
    fails(npllm("lab"), 3, "starlette and uvicorn are not installed; install them with: pip install starlette uvicorn$")


def test_the_command_loads_the_model_and_then_serves_it(npllm, monkeypatch):
    served = []
    monkeypatch.setattr(server, "serve", lambda lab, port, browser: served.append((lab.name, port, browser)))
    assert npllm("lab", "--open", "--port", "0").code == 0
    assert served == [("tiny", 0, True)]


def test_a_missing_browser_is_a_line(monkeypatch, capsys):
    monkeypatch.setattr(webbrowser, "open", lambda address: False)
    server.open_browser("http://127.0.0.1:1/")
    assert capsys.readouterr().err == "npllm: no browser was found to open; copy the address into one\n"
    monkeypatch.setattr(webbrowser, "open", lambda address: True)
    server.open_browser("http://127.0.0.1:1/")
    assert capsys.readouterr().err == ""


@unix
@pytest.mark.slow
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "generating"])
def test_it_prints_the_address_once_it_listens_and_ctrl_c_ends_it_at_once(start, folder, taken, usual_signals, busy):
    process = start("lab", "--port", str(taken), folder=folder, text=True)
    line = process.stderr.readline()
    assert re.fullmatch(rf"npllm: port {taken} is taken; using \d+\n", line)
    found = re.fullmatch(
        r"npllm: the lab is at http://127\.0\.0\.1:(\d+)/\?token=([\w-]{32})\n", process.stderr.readline()
    )
    client, token = Client(int(found[1])), found[2]
    page = client.send("GET", f"/?token={token}", {"Host": f"127.0.0.1:{client.port}"})
    assert page.status == 200
    if busy:
        headers = client.headers() | {"X-Npllm-Token": token}
        body = {"run": {"prompt": "Hello"}, "max_new_tokens": 10**6}
        stream = client.begin("generate", headers=headers, **body)
        assert [b"id" in stream.readline() for _ in range(3)] == [True] * 3
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert process.stderr.read() == "\n"
