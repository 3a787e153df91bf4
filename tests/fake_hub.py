"""A Hugging Face Hub on 127.0.0.1, with faults: its API as huggingface_hub uses it, and a second host for large files.

A fault is a function of the request's handler that answers in place of the Hub; if it returns True, the Hub answers as
usual. `times` limits it to the first requests.
"""

import gzip
import hashlib
import json
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

NAME, COMMIT, TOKEN = "someone/model", "0123456789" * 4, "hf_ThisIsSecret"


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a fault may hang

    def handle_error(self, *_):
        """A client that goes away is no error."""


class FakeHub:
    """A model's files by name. Those in `large` are on another host, as with LFS."""

    def __init__(self, files):
        self.files = dict(files)
        self.commit = COMMIT
        self.faults = {}
        self.requests = []  # (which host, method, path, headers)
        self.closed = threading.Event()

    def __enter__(self):
        self.hosts = {}
        for host in ("hub", "cdn"):
            handler = type("Handler", (Handler,), {"hub": self, "host": host})
            self.hosts[host] = Server(("127.0.0.1", 0), handler)
            threading.Thread(target=self.hosts[host].serve_forever, args=(0.005,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closed.set()
        for server in self.hosts.values():
            server.shutdown()
            server.server_close()

    def url(self, host="hub"):
        return f"http://127.0.0.1:{self.hosts[host].server_address[1]}"

    def fail(self, kind, fault, times=None):
        """Let a fault answer requests of a kind: listing, file (on the Hub), large (on the other host)."""
        count = iter(range(10**9))
        self.faults[kind] = lambda handler: True if times is not None and next(count) >= times else fault(handler)

    def paths(self, host="hub"):
        return [path for where, _, path, _ in self.requests if where == host]

    def entry(self, name):
        """A file in the listing."""
        data = self.files[name]
        entry = {"rfilename": name, "size": len(data), "blobId": blob_id(data)}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            entry["blobId"] = "9" * 40  # of the pointer
        return entry

    def listing(self):
        return {"id": NAME, "modelId": NAME, "sha": self.commit, "siblings": [self.entry(n) for n in self.files]}

    def tree(self):
        """The same for huggingface_hub 2."""
        for entry in self.listing()["siblings"]:
            found = {"type": "file", "path": entry["rfilename"], "size": entry["size"], "oid": entry["blobId"]}
            lfs = entry.get("lfs")
            yield found | ({"lfs": {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": 134}} if lfs else {})


def blob_id(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.hub.requests.append((self.host, self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        path = unquote(urlsplit(self.path).path)
        kind = "large" if self.host == "cdn" else "listing" if path.startswith("/api/") else "file"
        fault = self.hub.faults.get(kind)
        with suppress(OSError):  # the client has gone away
            if fault is None or fault(self):
                self.answer(kind, path)

    do_HEAD = do_GET

    def answer(self, kind, path):
        if kind == "listing":
            found = list(self.hub.tree()) if "/tree/" in path else self.hub.listing()
            self.send(200, json.dumps(found).encode())
            return
        file = path.rsplit("/", 1)[1]
        data = self.hub.files.get(file)
        if data is None:
            self.send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound"})
        elif kind == "file" and file.endswith(".safetensors"):
            headers = {"ETag": '"9"', "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"'}
            headers |= {"X-Linked-Size": str(len(data)), "Location": f"{self.hub.url('cdn')}/cdn/{file}?signature=1"}
            self.send(302, b"", headers | {"X-Repo-Commit": self.hub.commit})
        else:
            self.send_file(data, {"ETag": f'"{blob_id(data)}"', "X-Repo-Commit": self.hub.commit})

    def send_file(self, data, headers=()):
        """The bytes that the Range header asks for."""
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        if start == 0:
            self.send(200, data, dict(headers))
        elif start >= len(data):
            self.send(416, b"")
        else:
            span = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.send(206, data[start:], dict(headers) | {"Content-Range": span})

    def send(self, status, body, headers=(), length=None):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


# Faults


def status(code, **headers):
    headers = {key.replace("_", "-"): value for key, value in headers.items()}
    return lambda handler: handler.send(code, b"<html>sorry</html>", headers)


def says(body, **headers):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler: handler.send(200, body, headers)


def portal(handler):
    """A hotel's page to log in."""
    handler.send(200, b"<html>Welcome! Please log in.</html>", {"Content-Type": "text/html"})


def redirect(location):
    """To a URL, or the URL of a host of the fake Hub with a path."""
    return lambda handler: handler.send(302, b"", {"Location": location(handler) if callable(location) else location})


def elsewhere(handler):
    return f"{handler.hub.url('cdn')}/login"


def again(handler):
    return handler.path


def listing(change):
    """The listing, changed."""

    def answer(handler):
        found = handler.hub.listing()
        change(found)
        handler.send(200, json.dumps(found).encode())

    return answer


def sibling(name="config.json", **changes):
    """The listing, with one file described otherwise."""

    def change(found):
        entry = next(entry for entry in found["siblings"] if entry["rfilename"] == name)
        for key, value in changes.items():
            entry.pop(key, None) if value is None else entry.__setitem__(key, value)

    return listing(change)


def silent(handler):
    """Accepts, and never answers."""
    handler.hub.closed.wait(30)


def hangs_up(handler):
    handler.close_connection = True
    handler.connection.close()


def breaks_off(handler):
    handler.close_connection = True
    handler.send(200, b"{", length=99)


def garbage(handler):
    handler.wfile.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
    handler.close_connection = True


def drip(data=b" ", seconds=0.05, head=b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"):
    """A byte at a time, for ever."""

    def answer(handler):
        handler.wfile.write(head)
        while not handler.hub.closed.wait(seconds):
            handler.wfile.write(data)

    return answer


def endless(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not handler.hub.closed.is_set():
        handler.wfile.write(b'{"siblings": [' + b" " * 1_000_000)


def bomb(handler):
    """400 MB of blanks in 400 kB."""
    one = gzip.compress(b" " * 20_000_000)
    handler.send(200, one * 20, {"Content-Encoding": "gzip"})


def cut(keep):
    """The connection breaks after that many bytes."""

    def answer(handler):
        data = handler.hub.files[unquote(urlsplit(handler.path).path).rsplit("/", 1)[1]]
        start = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        handler.send(206 if start else 200, data[start : start + keep], length=len(data) - start)
        handler.close_connection = True
        handler.connection.close()

    return answer


def body(change, **headers):
    """The bytes of a file, changed."""

    def answer(handler):
        data = handler.hub.files[unquote(urlsplit(handler.path).path).rsplit("/", 1)[1]]
        handler.send(200, change(data), headers)

    return answer
