"""Models on the Hub: a fake one on 127.0.0.1 with some 80 faults, with an empty, a partial and a full cache."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fake_hub as fake
import pytest
from checkpoints import write_folder
from fake_hub import COMMIT, NAME, TOKEN, FakeHub

import npllm
from npllm.checkpoint import hub_api, hub_cache, hub_http
from npllm.checkpoint.hub import find
from npllm.errors import ModelFileError, NpllmError, UnavailableError

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
FILES = {
    "config.json": b'{"model_type": "phi3"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b'{"model": {}}' + b" " * 5000,
    "model.safetensors.index.json": json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode(),
    SHARDS[0]: bytes(range(256)) * 1000,
    SHARDS[1]: b"\1" * 70_000,
}
OTHERS = {
    **dict.fromkeys(["README.md", "modeling_phi3.py", "pytorch_model.bin", "model.gguf", ".gitattributes"], b"no"),
    **dict.fromkeys(["onnx/config.json", "pytorch_model.bin.index.json", "training_args.json", "vocab.json"], b"no"),
    **dict.fromkeys(["consolidated.safetensors", "model.fp16.safetensors", "original/params.json"], b"no"),
}
PROXIES = [name for pair in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (pair, pair.upper())]
HANGS_UNTIL = 20  # seconds


def close_connections():
    """The next request reads the variables of the proxies again."""
    from huggingface_hub import utils

    (getattr(utils, "close_session", None) or utils.reset_sessions)()


@pytest.fixture(autouse=True, scope="module")
def connections_end():
    yield
    close_connections()


@pytest.fixture
def settings(monkeypatch):
    """No proxies, a token, few tries."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_api, "PERSISTENCE", 0.02)
    monkeypatch.setattr(hub_api, "PAUSE", 0.01)
    monkeypatch.setattr(hub_cache.os, "fsync", lambda _: None)  # half a second here and there
    return monkeypatch


@pytest.fixture
def proxies(settings):
    close_connections()
    yield settings
    close_connections()


@pytest.fixture
def hub(settings):
    with FakeHub(FILES) as hub:
        settings.setattr("huggingface_hub.constants.ENDPOINT", hub.url())
        yield hub


@pytest.fixture
def cache(tmp_path):
    """A cache inside folders that must stay as they are."""
    outside = tmp_path / "home"
    (outside / "a").mkdir(parents=True)
    (outside / "keep.txt").write_text("mine")
    return outside / "a" / "b" / "cache"


def model_in(cache):
    return cache / f"models--{NAME.replace('/', '--')}"


def fill(cache, files=FILES, commit=COMMIT, ref="main"):
    """Put files into a cache as huggingface_hub does; a file that is None is a link to a blob that is not there."""
    model = model_in(cache)
    snapshot = model / "snapshots" / commit
    for folder in (snapshot, model / "blobs", model / "refs"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        digest = hashlib.sha256(data or b"").hexdigest() if name in SHARDS else fake.blob_id(data or b"")
        if data is not None:
            (model / "blobs" / digest).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{digest}")
    (model / "refs" / ref).write_text(commit)
    return snapshot


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def outside(cache):
    """Every file outside the cache."""
    home = cache.parents[1]
    return {path: path.read_bytes() for path in home.rglob("*") if path.is_file() and cache not in path.parents}


def fails(cache, error, message, **how):
    """`find` ends with that error, in one line, without the token."""
    with pytest.raises(error) as raised:
        find(NAME, cache_dir=cache, **how)
    text = str(raised.value)
    assert message in text
    assert "\n" not in text
    assert TOKEN not in text


# These run quickly; the others are of the same kinds.
KINDS = ("listing", "file", "large")
QUICK = {
    *("status 503", "a captive portal's page", "a redirect to a captive portal", "a commit that is a path", "an array"),
    *("a digest that is a path", "status 429", "altered", "short", "a connection that closes", "names that are paths"),
    *("cut after a while", "not a url"),
}


def params(cases):
    """Cases of a name and values, or of the kind of requests, a name and values."""
    found = []
    for case in cases:
        kind, what, values = (*case[:2], case[2:]) if case[0] in KINDS else (None, case[0], case[1:])
        marks = [] if what in QUICK else pytest.mark.slow
        name, first = (f"{kind}: {what}", (kind,)) if kind else (what, ())
        found.append(pytest.param(*first, *values, id=name, marks=marks))
    return found


# Faults of the Hub: (what, which requests, the fault, a part of the error). "cache": a full cache serves instead.

WRONG = "something other than a listing"
LISTING = [
    ("status 500", fake.status(500), "status 500 (Internal Server Error)"),
    ("status 503", fake.status(503, Retry_After="3600"), "status 503"),
    ("status 429", fake.status(429, Retry_After="3600"), "status 429 (Too Many Requests); try again later"),
    ("a status that does not exist", fake.status(599), "status 599;"),
    ("no content", fake.status(204), "status 204"),
    ("401", fake.status(401), "no such model on the Hub"),
    ("404", fake.status(404, X_Error_Code="RepoNotFound"), "no such model on the Hub"),
    ("gated", fake.status(403, X_Error_Code="GatedRepo"), "access requires accepting its terms"),
    ("no such revision", fake.status(404, X_Error_Code="RevisionNotFound"), "but no such revision"),
    ("forbidden", fake.status(403), "status 403 (Forbidden)"),
    ("a captive portal's page", fake.portal, WRONG),
    ("a redirect to a captive portal", fake.redirect(fake.elsewhere), "redirects to another host, 127.0.0.1"),
    ("a redirect in a loop", fake.redirect(fake.again), "redirects too many times"),
    ("a redirect to nowhere", fake.redirect(""), "redirects too many times"),
    ("a redirect to a file", fake.redirect("file:///etc/passwd"), "neither http nor https"),
    ("a redirect to no URL", fake.redirect("http://[:/"), "ValueError"),
    ("an array", fake.says([]), WRONG),
    ("null", fake.says(None), WRONG),
    ("a number", fake.says(1), WRONG),
    ("an empty object", fake.says({}), WRONG),
    ("an empty body", fake.says(b""), WRONG),
    ("not UTF-8", fake.says(b"\xff\xfe{}"), WRONG),
    ("cut JSON", fake.says(b'{"sha": "0123'), WRONG),
    ("deep JSON", fake.says(b"[" * 1_000_000), WRONG),
    ("a number of a million digits", fake.says(b'{"sha": ' + b"1" * 1_000_000 + b"}"), WRONG),
    ("files that are no list", fake.listing(lambda found: found.update(siblings=3)), WRONG),
    ("files that are no objects", fake.listing(lambda found: found.update(siblings=["config.json", 7])), WRONG),
    ("file names that are lists", fake.sibling(rfilename=[]), WRONG),
    ("no commit", fake.listing(lambda found: found.pop("sha")), "a commit other than"),
    (
        "a commit that is a path",
        fake.listing(lambda found: found.update(sha="../../../../evil")),
        "a commit other than",
    ),
    ("a commit that is a full path", fake.listing(lambda found: found.update(sha="/tmp/evil")), "a commit other than"),
    ("a short commit", fake.listing(lambda found: found.update(sha="01234567")), "a commit other than"),
    ("a commit with a newline", fake.listing(lambda found: found.update(sha=COMMIT + "\n")), "a commit other than"),
    ("a bomb", fake.bomb, WRONG),
    ("an endless listing", fake.endless, "too much, or too slowly"),
    ("a connection that closes", fake.hangs_up, "Error"),
    ("no HTTP", fake.garbage, "Error"),
    ("a listing that breaks off", fake.breaks_off, "Error"),
    ("never answers", fake.silent, "no answer within 0.3 seconds"),
    ("a byte at a time", fake.drip(), "no answer within 0.3 seconds"),
    ("headers a byte at a time", fake.drip(b"x", head=b"HTTP/1.1 200 OK\r\nX-Long: "), "no answer within 0.3 seconds"),
]


@pytest.mark.parametrize(("fault", "message"), params(LISTING))
def test_without_a_listing_the_cache_serves(hub, cache, capfd, settings, fault, message):
    before, started = outside(cache), time.perf_counter()
    if "no answer" in message:
        settings.setattr(hub_api, "PATIENCE", 0.3)
    hub.fail("listing", fault)
    fails(cache, UnavailableError, message)
    fill(cache, {name: data for name, data in FILES.items() if name != SHARDS[1]})
    fails(cache, UnavailableError, message)
    shutil.rmtree(cache)
    snapshot = fill(cache)
    assert find(NAME, cache_dir=cache) == snapshot
    assert outside(cache) == before
    assert all("authorization" not in headers for host, _, _, headers in hub.requests if host == "cdn")
    assert capfd.readouterr() == ("", "")
    assert time.perf_counter() - started < HANGS_UNTIL


# What a listing says of a file that is needed
ENTRIES = [
    ("a digest that is a path", fake.sibling(blobId="../../../../evil"), "without a size and a digest"),
    ("a digest that is a full path", fake.sibling(blobId="/tmp/evil"), "without a size and a digest"),
    ("a SHA-256 that is a path", fake.sibling(SHARDS[0], lfs={"sha256": "../../x", "size": 5}), "without a size"),
    ("a short digest", fake.sibling(blobId="abc"), "with a digest of 3 digits instead of 40"),
    ("a short SHA-256", fake.sibling(SHARDS[0], lfs={"sha256": "9" * 40, "size": 5}), "of 40 digits instead of 64"),
    ("a digest that is a number", fake.sibling(blobId=7), "without a size and a digest"),
    ("no digest", fake.sibling(blobId=None), "without a size and a digest"),
    ("no size", fake.sibling(size=None), "without a size and a digest"),
    ("a negative size", fake.sibling(size=-1), "without a size and a digest"),
    ("a size that is a text", fake.sibling(size="7"), "without a size and a digest"),
    ("a size beyond the disk", fake.sibling(size=10**18), "the download needs"),
    ("no config.json", fake.sibling(rfilename="config.yaml"), "expected a config.json, found none"),
    ("an adapter", fake.sibling(rfilename="adapter_config.json"), "expected a whole model, got an adapter (LoRA)"),
    ("another digest", fake.sibling(blobId="8" * 40), "expected a file with the digest 8888888888"),
    ("another size", fake.sibling(size=5), "expected a file with the digest"),
]
FILE = [
    ("file", "status 500", fake.status(500), "status 500"),
    ("file", "status 429", fake.status(429, Retry_After="3600"), "status 429"),
    ("file", "status 404", fake.status(404, X_Error_Code="EntryNotFound"), "config.json, and does not have it"),
    ("file", "status 416", fake.status(416), "status 416"),
    ("file", "a captive portal's page", fake.portal, "expected a file with the digest"),
    ("file", "an empty body", fake.says(b""), "sends 0 of"),
    ("file", "compressed", fake.bomb, "expected a file with the digest"),
    ("file", "a connection that closes", fake.hangs_up, "Error"),
    ("file", "a redirect in a loop", fake.redirect(fake.again), "redirects too many times"),
    ("file", "a redirect to a file", fake.redirect("file:///etc/passwd"), "neither http nor https"),
    ("large", "status 503", fake.status(503), "status 503"),
    ("large", "status 403", fake.status(403), "status 403"),
    ("large", "altered", fake.body(lambda data: data[:-1] + b"?"), f"{SHARDS[0]}: expected a file with the digest"),
    ("large", "short", fake.body(lambda data: data[:-1]), "sends 255999 of 256000 bytes"),
    ("large", "long", fake.body(lambda data: b"x" + data), "expected a file with the digest"),
    ("large", "cut at once", fake.cut(0), "Error"),
    ("large", "cut again and again", fake.cut(100), "Error"),
    ("large", "a redirect to no web page", fake.redirect("ftp://127.0.0.1/x"), "neither http nor https"),
    ("large", "a closed port", fake.redirect("http://127.0.0.1:9/x"), "cannot be reached (Connect"),
    ("large", "never answers", fake.silent, "no answer within 0.3 seconds"),
    ("large", "a byte at a time", fake.drip(), "no answer within 0.3 seconds"),
    ("file", "never answers", fake.silent, "no answer within 0.3 seconds"),
]


@pytest.mark.parametrize(("kind", "fault", "message"), params([*(("listing", *case) for case in ENTRIES), *FILE]))
def test_a_wrong_file_is_refused_and_the_next_run_loads(hub, cache, capfd, settings, kind, fault, message):
    before, started = outside(cache), time.perf_counter()
    if "no answer" in message:
        settings.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fail(kind, fault)
    fails(cache, UnavailableError, message)
    fill(cache, {"config.json": FILES["config.json"]}, commit="1" * 40, ref="v1")  # an older commit, not complete
    fails(cache, UnavailableError, message)
    assert outside(cache) == before
    assert not (model_in(cache) / "refs" / "main").exists()
    hub.faults.clear()
    settings.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 10)
    assert contents(find(NAME, cache_dir=cache)) == FILES
    assert not [*cache.rglob("*.incomplete"), *cache.rglob("*.part")]
    assert all("authorization" not in headers for host, _, _, headers in hub.requests if host == "cdn")
    assert capfd.readouterr() == ("", "")
    assert time.perf_counter() - started < HANGS_UNTIL


HARMLESS = [
    ("listing", "a renamed model", fake.redirect(lambda handler: handler.path.replace("models/", "models/now/")), 1),
    ("listing", "names that are paths", fake.listing(lambda found: found["siblings"].extend(EVIL)), None),
    ("file", "an ETag that is a path", lambda handler: handler.send_file(FILES["config.json"], {"ETag": "/x"}), 1),
    ("file", "a commit that is a path", lambda handler: handler.send_file(FILES["config.json"], HEADERS), 1),
    ("file", "503 for a moment", fake.status(503), 1),
    ("large", "a connection that closes", fake.hangs_up, 1),
    ("large", "cut after a while", fake.cut(100_000), 3),
]
EVIL = [{"rfilename": name, "size": 2, "blobId": "/x"} for name in ("../../../evil", "/tmp/evil", "..", "", "a\\b")]
HEADERS = {"X-Repo-Commit": "../../../..", "X-Linked-Etag": '"../../../../evil"', "ETag": 'W/"../../evil"'}


@pytest.mark.parametrize(("kind", "fault", "times"), params(HARMLESS))
def test_faults_that_change_nothing(hub, cache, capfd, settings, kind, fault, times):
    settings.setattr(hub_api, "PERSISTENCE", 5)
    before = outside(cache)
    hub.fail(kind, fault, times)
    assert contents(find(NAME, cache_dir=cache)) == FILES
    assert outside(cache) == before
    assert capfd.readouterr() == ("", "")


# What is downloaded


def test_only_what_npllm_reads_is_downloaded(hub, cache):
    hub.files |= OTHERS
    snapshot = find(NAME, cache_dir=cache)
    assert contents(snapshot) == FILES
    assert [path for path in hub.paths() if "/api/" in path] == [f"/api/models/{NAME}/revision/main?blobs=true"]
    assert len(hub.paths()) == 1 + len(FILES)
    seen = len(hub.requests)
    assert find(NAME, cache_dir=cache) == snapshot
    assert find(NAME, revision=COMMIT, cache_dir=cache) == snapshot
    assert len(hub.requests) == seen + 2  # two listings


def test_one_file_of_weights_is_enough(hub, cache):
    hub.files["model.safetensors"] = b"all"
    names = [*FILES, "model.safetensors"]
    assert {*contents(find(NAME, cache_dir=cache))} == {*names} - {*SHARDS, "model.safetensors.index.json"}


def test_a_tokenizer_needs_no_weights(hub, cache):
    assert {*contents(find(NAME, cache_dir=cache, weights=False))} == {*list(FILES)[:3]}
    fails(cache, UnavailableError, "(model.safetensors is missing)", offline=True)
    assert find(NAME, cache_dir=cache, weights=False, offline=True).name == COMMIT


@pytest.mark.slow
def test_what_is_downloaded_is_what_is_read(tmp_path):
    """Each file that `load` opens, so that a new one cannot be forgotten."""
    write_folder(tmp_path / "model", shards=2)
    for name in hub_cache.SMALL:
        if not (tmp_path / "model" / name).exists():
            (tmp_path / "model" / name).write_text("{}")
    code = (
        "import sys, npllm, pathlib\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "sys.addaudithook(lambda event, args: event == 'open' and str(folder) in str(args[0]) and print(args[0]))\n"
        "npllm.load(folder)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    # The tokenizers library opens tokenizer.json itself, out of Python's sight.
    opened = {Path(line).name for line in lines if "safetensors" not in line} | {"tokenizer.json"}
    assert opened == {*hub_cache.SMALL}


@pytest.mark.slow
def test_a_listing_with_thousands_of_files(hub, cache):
    more = [{"rfilename": f"checkpoint-{i}/optimizer.pt", "size": 1, "blobId": "7" * 40} for i in range(30_000)]
    hub.fail("listing", fake.listing(lambda found: found["siblings"].extend(more)))
    assert contents(find(NAME, cache_dir=cache)) == FILES


def test_the_token_goes_to_the_hub_only(hub, cache):
    find(NAME, cache_dir=cache)
    for host, method, _, headers in hub.requests:
        assert method == "GET"
        assert headers.get("authorization") == (f"Bearer {TOKEN}" if host == "hub" else None)


def test_a_new_commit_is_downloaded_and_shares_blobs(hub, cache):
    first = find(NAME, cache_dir=cache)
    seen = len(hub.requests)
    hub.files["config.json"] += b" "
    hub.commit = "f" * 40
    second = find(NAME, cache_dir=cache)
    assert (first.name, second.name) == (COMMIT, "f" * 40)
    assert len(hub.requests) == seen + 2  # the listing and config.json
    assert contents(first) == FILES
    assert find(NAME, cache_dir=cache, offline=True) == second
    assert find(NAME, revision="f" * 40, cache_dir=cache, offline=True) == second


def test_a_commit_that_cannot_be_completed_leaves_the_older_one(hub, cache):
    first = find(NAME, cache_dir=cache)
    hub.files[SHARDS[1]] += b"?"
    hub.commit = "f" * 40
    hub.fail("large", fake.status(503))
    fails(cache, UnavailableError, "the download failed: http")
    assert find(NAME, cache_dir=cache, offline=True) == first


def test_a_new_commit_without_its_weights_leaves_the_older_one(hub, cache):
    first = find(NAME, cache_dir=cache)
    hub.commit = "f" * 40
    assert find(NAME, cache_dir=cache, weights=False).name == "f" * 40
    assert find(NAME, cache_dir=cache, offline=True) == first


@pytest.mark.slow
def test_the_cache_is_the_one_of_huggingface_hub(hub, cache, settings):
    from huggingface_hub import snapshot_download

    snapshot = find(NAME, cache_dir=cache)
    assert Path(snapshot_download(NAME, cache_dir=cache, local_files_only=True)) == snapshot
    shutil.rmtree(cache)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    for module in ("constants", "file_download"):  # the second in versions before 1
        name = f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE"
        settings.setattr(name, hub.url() + template, raising=False)
    filled = Path(snapshot_download(NAME, cache_dir=cache, allow_patterns=["*.json"]))
    seen = len(hub.requests)
    assert find(NAME, cache_dir=cache) == filled.resolve()
    assert len(hub.requests) == seen + 1 + 2 * len(SHARDS)
    assert contents(filled) == FILES


# Offline, and what others left in the cache


def test_offline_a_cache_that_others_filled(hub, cache):
    """`hf download` with patterns, transformers and vLLM leave out files; npllm does not read all of them."""
    snapshot = fill(cache)
    (snapshot / "README.md").symlink_to("../../blobs/none")
    (snapshot / "training_args.json").symlink_to("../../blobs/none")
    leave_listing(cache, [*FILES, *OTHERS])
    for revision in (None, COMMIT):
        assert find(NAME, revision, cache_dir=cache, offline=True) == snapshot
    assert hub.requests == []


def leave_listing(cache, names):
    """The listing that huggingface_hub 2 leaves in its cache."""
    path = model_in(cache) / "trees" / f"{COMMIT}.json"
    path.parent.mkdir(parents=True)
    files = {name: {"size": 2, "blob_id": "7" * 40} for name in names}
    path.write_text(json.dumps({"format_version": 1, "files": files}))
    return path


def test_offline_a_small_file_that_others_left_out(hub, cache):
    """Without it, the model could say something else."""
    snapshot = fill(cache, {name: data for name, data in FILES.items() if name != "generation_config.json"})
    assert find(NAME, cache_dir=cache, offline=True) == snapshot  # not known to exist
    listing = leave_listing(cache, FILES)
    fails(cache, UnavailableError, "(generation_config.json is missing)", offline=True)
    for text in ("", "[]", "{}", '{"files": 3}'):
        listing.write_text(text)
        assert find(NAME, cache_dir=cache, offline=True) == snapshot
    assert contents(find(NAME, cache_dir=cache)) == FILES


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", *SHARDS])
@pytest.mark.parametrize("blob", [True, False])
def test_offline_a_snapshot_without_a_file_that_is_needed(cache, hub, lost, blob):
    files = {**FILES, lost: None}
    if not blob:
        del files[lost]
    fill(cache, files)
    if lost == "tokenizer.json" and not blob:  # without a listing, no one can know that it has one
        assert find(NAME, cache_dir=cache, offline=True).name == COMMIT
    else:
        fails(cache, UnavailableError, f"({lost} is missing), and {hub.url()} was not asked (offline)", offline=True)
    assert contents(find(NAME, cache_dir=cache)) == FILES


@pytest.mark.parametrize("by_flag", [True, False])
def test_offline_a_hub_name_fails_without_a_connection(hub, cache, settings, by_flag):
    settings.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", not by_flag)
    with pytest.raises(UnavailableError, match=r"nobody/nothing: .*cache, and http.* was not asked \(offline\)"):
        npllm.load("nobody/nothing", cache_dir=cache, offline=by_flag)
    assert hub.requests == []


def test_a_cached_model_loads(hub, cache, tmp_path):
    write_folder(tmp_path / "model")
    hub.files = contents(tmp_path / "model")
    online = npllm.load(NAME, cache_dir=cache)
    hub.fail("listing", fake.portal)
    offline = npllm.load(NAME, cache_dir=cache)
    assert (online.config, online.generation_config) == (offline.config, offline.generation_config)
    with pytest.raises(UnavailableError, match=r"someone/model, revision v2: .*was not asked"):
        npllm.load(NAME, cache_dir=cache, revision="v2", offline=True)


@pytest.mark.slow
@pytest.mark.parametrize("ref", ["../../../../../home/a", "/tmp", "", COMMIT + "/..", "\0" * 40, "x" * 100_000])
def test_a_ref_in_the_cache_that_is_no_commit(cache, hub, ref):
    fill(cache)
    (model_in(cache) / "refs" / "main").write_text(ref)
    fails(cache, UnavailableError, "no complete copy in the local cache", offline=True)
    assert contents(find(NAME, cache_dir=cache)) == FILES


@pytest.mark.parametrize("revision", ["../x", "/etc", "a/../b", "a//b", "a\\b", "C:x", ".", "a/", "a\0b"])
def test_a_revision_that_could_be_a_path(cache, hub, revision):
    fails(cache, UnavailableError, "expected the name of a branch, a tag or a commit", revision=revision)
    assert hub.requests == []


def test_a_revision_with_a_slash(cache, hub):
    assert find(NAME, revision="refs/pr/1", cache_dir=cache).name == COMMIT
    assert hub.paths()[0].endswith("/revision/refs%2Fpr%2F1?blobs=true")
    assert find(NAME, revision="refs/pr/1", cache_dir=cache, offline=True).name == COMMIT


def test_a_commit_is_answered_with_another(cache, hub):
    fails(cache, UnavailableError, "a commit other than the one asked for", revision="5" * 40)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight_map", "error", "message"),
    [
        ({"a": "../../../../keep.txt"}, None, "expected the name of a .safetensors file"),
        ({"a": "/etc/x.safetensors"}, None, "expected the name of a .safetensors file"),
        ({"a": "not-listed.safetensors"}, None, "not-listed.safetensors"),
        ([], None, "weight_map: expected an object"),
        (None, ModelFileError, "expected JSON"),
    ],
)
def test_an_index_that_is_wrong(cache, hub, weight_map, error, message):
    text = b"{" if weight_map is None else json.dumps({"weight_map": weight_map}).encode()
    hub.files["model.safetensors.index.json"] = text
    with pytest.raises(error or NpllmError, match=message):
        npllm.checkpoint.folder.read_folder(find(NAME, cache_dir=cache))
    assert not [path for path in hub.paths() if "keep" in path or "etc" in path]


# The cache


def test_a_short_file_is_downloaded_again(cache, hub):
    fill(cache, FILES | {SHARDS[1]: FILES[SHARDS[1]][:-5]})
    assert contents(find(NAME, cache_dir=cache)) == FILES


@pytest.mark.slow
@pytest.mark.parametrize("left", [FILES[SHARDS[0]][:100_000], b"?" * 10, FILES[SHARDS[0]] + b"?", FILES[SHARDS[0]]])
def test_an_interrupted_download_goes_on(cache, hub, left):
    """With what an earlier run left; if that is not a part of the file, from the start."""
    blob = model_in(cache) / "blobs" / hashlib.sha256(FILES[SHARDS[0]]).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(left)
    assert contents(find(NAME, cache_dir=cache)) == FILES
    ranges = [headers.get("range") for _, _, path, headers in hub.requests if SHARDS[0] in path]
    assert ranges[:1] == ["bytes=100000-"] if len(left) == 100_000 else True
    assert len(ranges) == {100_000: 2, 10: 4, 256_001: 2, 256_000: 0}[len(left)]  # each twice: the Hub, then the CDN


def test_a_host_without_ranges_sends_the_whole_file(cache, hub):
    hub.fail("large", fake.body(lambda data: data))
    blob = model_in(cache) / "blobs" / hashlib.sha256(FILES[SHARDS[0]]).hexdigest()
    blob.parent.mkdir(parents=True)
    blob.with_name(f"{blob.name}.incomplete").write_bytes(b"??")
    assert contents(find(NAME, cache_dir=cache)) == FILES
    assert [SHARDS[0] in path for path in hub.paths("cdn")] == [True, False]  # once each


def test_a_cache_that_is_a_file(cache, hub):
    cache.parent.mkdir(parents=True)
    cache.write_text("mine")
    fails(cache, UnavailableError, f"the cache {cache} cannot be used (Not a directory)")
    fails(cache, UnavailableError, "was not asked", offline=True)
    assert cache.read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_cache_that_is_not_writable(cache, hub):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    fails(cache, UnavailableError, f"the cache {cache} cannot be used (Permission denied)")


def test_a_read_only_cache_serves(cache, hub, settings):
    snapshot = fill(cache)
    (model_in(cache) / "refs" / "main").unlink()
    settings.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    assert find(NAME, cache_dir=cache) == snapshot


@pytest.mark.slow
@pytest.mark.parametrize("number", [28, 30, 5], ids=["full", "read-only", "broken"])
def test_a_disk_that_is_full(cache, hub, settings, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    settings.setattr(hub_cache.os, "fsync", refuse)
    fails(cache, UnavailableError, f"the cache {cache} cannot be used ({os.strerror(number)}); choose another one")
    assert not [*cache.rglob("*.incomplete")]
    settings.undo()


def test_a_complete_file_is_not_followed_by_a_pause(cache, hub, settings):
    settings.setattr(hub_api.time, "sleep", lambda _: pytest.fail("a pause"))
    assert contents(find(NAME, cache_dir=cache)) == FILES


def test_a_file_that_is_longer_than_listed(hub, tmp_path):
    hub.fail("file", fake.says(b"x" * 1000))
    with (tmp_path / "file").open("ab") as output:
        hub_api.fetch(NAME, COMMIT, "config.json", 10, output, lambda _: None)
    assert (tmp_path / "file").read_bytes() == b"x" * 10


def test_within_ends_a_call_that_hangs():
    hangs = threading.Event()
    with pytest.raises(hub_http.NoAnswer, match="gives no answer within"):
        hub_http.within(0.05, lambda: hangs.wait(5))
    hangs.set()
    with pytest.raises(MemoryError):
        hub_http.within(5.0, lambda: (_ for _ in ()).throw(MemoryError))
    assert hub_http.within(5.0, lambda: 7) == 7


def test_a_model_that_does_not_fit(cache, hub, settings):
    settings.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 10**5, 10**5))
    fails(cache, UnavailableError, "the download needs 326.0 kB, ")
    assert not hub.paths("cdn")


@pytest.mark.slow
def test_a_system_without_links(cache, hub, settings):
    settings.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no such privilege")))
    snapshot = find(NAME, cache_dir=cache)
    assert contents(snapshot) == FILES
    assert not any(path.is_symlink() for path in snapshot.iterdir())


def lock_of(cache):
    path = cache / ".locks" / model_in(cache).name / f"{fake.blob_id(FILES['config.json'])}.lock"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.slow
def test_a_lock_that_another_process_holds(cache, hub, settings):
    from filelock import FileLock

    settings.setattr(hub_cache, "LOCK_PATIENCE", 0.1)
    with FileLock(lock_of(cache)):
        fails(cache, UnavailableError, "another process holds the lock")
    assert contents(find(NAME, cache_dir=cache)) == FILES


@pytest.mark.slow
def test_the_download_of_another_process_is_waited_for(cache, hub, settings):
    from filelock import FileLock

    settings.setattr(hub_cache, "LOCK_PATIENCE", 1.5)
    lock, done = FileLock(lock_of(cache), thread_local=False), threading.Event()
    blob = model_in(cache) / "blobs" / lock.lock_file.rsplit(os.sep, 1)[1].removesuffix(".lock")
    blob.parent.mkdir(parents=True)
    other = blob.with_name(f"{blob.name}.1234.incomplete")  # as huggingface_hub 2 names it
    lock.acquire()

    def download():
        for i in range(1, 8):
            other.write_bytes(FILES["config.json"][: 3 * i])
            done.wait(0.3)
        other.write_bytes(FILES["config.json"])
        other.replace(blob)
        lock.release()

    threading.Thread(target=download).start()
    assert contents(find(NAME, cache_dir=cache)) == FILES
    assert not [path for path in hub.paths() if path.endswith("/config.json")]


# The environment


@pytest.mark.parametrize(
    "url",
    ["", "huggingface.co", "not a url", "http://", "http://[", "http://h:port", "ftp://h", "http://h:99999", "/x"],
)
def test_an_endpoint_that_is_no_url(cache, settings, url):
    settings.setattr("huggingface_hub.constants.ENDPOINT", url)
    fails(cache, UnavailableError, "HF_ENDPOINT: expected a URL such as https://huggingface.co, got")
    snapshot = fill(cache)
    assert find(NAME, cache_dir=cache) == snapshot


@pytest.mark.slow
@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    "url",
    ["not a url", "http://u:secret@[", "http://h:port", "ftp://u:secret@127.0.0.1:9", "http://u:secret@127.0.0.1:9"],
)
def test_a_proxy_that_is_none(cache, hub, proxies, name, url):
    proxies.setenv(name, url)
    fails(cache, UnavailableError, f"model {NAME}: ")
    assert hub.requests == []
    with pytest.raises(UnavailableError) as raised:
        find(NAME, cache_dir=cache)
    assert "secret" not in str(raised.value)
    snapshot = fill(cache)
    assert find(NAME, cache_dir=cache) == snapshot


@pytest.mark.slow
def test_a_proxy_is_used(cache, hub, proxies):
    proxies.setattr("huggingface_hub.constants.ENDPOINT", "http://hub.invalid")
    proxies.setenv("http_proxy", hub.url())
    hub.faults["listing"] = lambda handler: handler.answer("listing", "/api/models/x/revision/main")
    fails(cache, UnavailableError, "")
    assert hub.paths()[0].startswith("http://hub.invalid/api/models/")


@pytest.mark.slow
@pytest.mark.parametrize("token", ["a\x01b", "é", "a\tb"])
def test_a_token_that_cannot_be_sent(cache, hub, settings, token):
    settings.setenv("HF_TOKEN", f"{TOKEN}{token}")
    fails(cache, UnavailableError, "HF_TOKEN: expected printable ASCII characters")
    assert hub.requests == []


def test_a_host_that_is_not_there(cache, settings):
    settings.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    fails(cache, UnavailableError, "cannot be reached (Connect")
    fails(cache, UnavailableError, "download it while online, or give a folder with --model")


@pytest.mark.parametrize("name", ["what is this?", "a--b", "a..b", "-a", "x" * 97, "a\nb"])
def test_a_name_that_the_hub_cannot_have(cache, name):
    with pytest.raises(UnavailableError, match="or a Hub name such as owner/model"):
        find(name, cache_dir=cache)


# Processes of their own: signals, the terminal, variables that are read when a library is imported


def command(hub, cache, *arguments, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in PROXIES} | {
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url(),
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
    }
    line = [sys.executable, "-m", "npllm", "show", "-m", NAME, "--cache-dir", str(cache), *arguments]
    return {"args": line, "env": environment | variables, "text": True, "stdout": -1, "stderr": -1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("HF_ENDPOINT", "not a url", "HF_ENDPOINT: expected a URL"),
        ("HF_ENDPOINT", "http://[::1", "HF_"),
        ("HF_HUB_ETAG_TIMEOUT", "soon", "HF_"),
        ("HTTP_PROXY", "http://[", f"model {NAME}: "),
        ("HTTP_PROXY", "nonsense://x", f"model {NAME}: "),
        ("ALL_PROXY", "socks9://x", f"model {NAME}: "),
    ],
)
def test_variables_in_a_process(cache, hub, variable, value, message):
    done = subprocess.run(**command(hub, cache, **{variable: value}), timeout=60)
    assert (done.returncode, done.stdout) == (3, "")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("code", [429, 503])
def test_a_hub_in_trouble_ends_within_ten_seconds(cache, hub, code):
    for kind in ("listing", "file"):
        hub.fail(kind, fake.status(code, Retry_After="3600"))
        done = subprocess.run(**command(hub, cache), timeout=60)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
        assert f"status {code}" in done.stderr
        hub.faults.clear()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_ends_a_download_at_once_and_the_next_run_goes_on(cache, hub):
    hub.fail("large", fake.drip(b"\0" * 65_536, 0.05, b"HTTP/1.1 200 OK\r\nContent-Length: 256000000\r\n\r\n"))
    hub.files[SHARDS[0]] = b"\0" * 10_000_000
    process = subprocess.Popen(**command(hub, cache))
    arrived = 0
    while arrived < 200_000:
        time.sleep(0.02)
        with contextlib.suppress(FileNotFoundError):  # of a small file, just renamed
            arrived = max((path.stat().st_size for path in cache.rglob("*.incomplete")), default=0)
    process.send_signal(signal.SIGINT)
    started = time.perf_counter()
    out, err = process.communicate(timeout=30)
    assert time.perf_counter() - started < 3
    assert (process.returncode, out, err.strip()) == (130, "", "")
    hub.faults.clear()
    assert find(NAME, cache_dir=cache, weights=True).name == COMMIT
    ranges = [headers.get("range") for host, _, _, headers in hub.requests if host == "cdn"]
    assert ranges[1].startswith("bytes=")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("fault", [None, fake.status(403)], ids=["whole", "refused"])
def test_progress_bars_on_a_terminal(cache, hub, fault):
    import pty
    import termios

    if fault:
        hub.fail("large", fault)
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, 120))
    process = subprocess.Popen(**command(hub, cache) | {"stderr": slave})
    os.close(slave)
    shown = bytearray()
    while True:
        try:
            shown += os.read(master, 65_536)
        except OSError:  # the other end is closed
            break
    os.close(master)
    process.communicate(timeout=30)
    lines = [line.rpartition("\r")[2] for line in shown.decode().replace("\r\n", "\n").split("\n")]
    assert f"{SHARDS[0]}:" in shown.decode()
    assert not any("%" in line for line in lines)  # a bar goes when it ends


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of a file")
def test_a_limit_on_the_size_of_files(cache, hub):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(**command(hub, cache), preexec_fn=limit, timeout=60)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
    assert "cannot be used (File too large)" in done.stderr
    assert not [*cache.rglob("*.incomplete")]


@pytest.mark.slow
def test_a_bomb_takes_little_memory(cache, hub):
    resource = pytest.importorskip("resource", reason="Windows has no limits of this kind")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for fault in (fake.bomb, fake.endless, fake.says(b"[" * 7_000_000)):
        hub.fail("listing", fault)
        fails(cache, UnavailableError, "")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000 * (1024 if sys.platform == "darwin" else 1)
