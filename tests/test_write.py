"""npllm convert with hostile folders, at the end of a process, and next to another process."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import write_folder
from command_line import ROOT, fails, unix

from npllm import load
from npllm.checkpoint import write
from npllm.checkpoint.write import COPIED, convert, small_file
from npllm.errors import ModelFileError, UsageError
from npllm.inspect.trace import read_trace
from npllm.storage.json_file import json_text


@pytest.fixture
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "m"
    write_folder(path)
    return path


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


# Links in the source


@unix
@pytest.mark.parametrize("name", COPIED)
@pytest.mark.parametrize("target", ["{}/secret", "../secret", "../m/../secret", "../link", "/proc/self/status"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name, target):
    (tmp_path / "m").mkdir()
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "link").symlink_to("secret")
    (tmp_path / "m" / name).symlink_to(target.format(tmp_path))
    with pytest.raises(ModelFileError, match=f"{name}: expected a file of this folder, got a link to "):
        small_file(tmp_path / "m" / name)


@unix
def test_a_model_with_a_link_out_of_its_folder_is_not_converted(npllm, tmp_path, source):
    (source / "merges.txt").symlink_to("/etc/passwd")
    fails(
        npllm("convert", source, tmp_path / "n", "--dtype", "float32"), 4, "merges.txt: expected a file of this folder"
    )
    assert left_in(tmp_path) == []


@unix
@pytest.mark.slow
def test_links_within_the_folder_are_followed(tmp_path, source):
    for name in [path.name for path in source.iterdir()]:
        (source / name).rename(source / f"real {name}")
        (source / name).symlink_to(f"real {name}")
    (source.parent / "link").symlink_to(source)
    convert(source.parent / "link", tmp_path / "n", "float32")
    assert load(tmp_path / "n").tokenizer is not None
    assert not any(path.is_symlink() for path in (tmp_path / "n").iterdir())


@unix
@pytest.mark.slow
@pytest.mark.parametrize("copied", [False, True])
def test_the_cache_of_the_hub_is_made_of_links(tmp_path, source, copied):
    """Also those of a folder that an older huggingface_hub filled with links to its cache."""
    repository = tmp_path / "models--owner--m"
    snapshot = repository / "snapshots" / "0123"
    if copied:
        snapshot = tmp_path / "elsewhere"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(source.iterdir())):
        path.rename(repository / "blobs" / f"{number:040}")
        blob = repository / "blobs" / f"{number:040}"
        (snapshot / path.name).symlink_to(blob if copied else f"../../blobs/{number:040}")
    convert(snapshot, tmp_path / "n", "float32")
    assert load(tmp_path / "n").tokenizer is not None


@unix
def test_what_is_no_file_is_not_copied(tmp_path, source):
    os.mkfifo(source / "pipe")
    links = {"merges.txt": "/dev/zero", "vocab.json": "nothing", "tokenizer.model": "pipe", "added_tokens.json": ".."}
    for name, target in links.items():
        (source / name).symlink_to(target)
    convert(source, tmp_path / "n", "float32")
    assert not {*links} & {*left_in(tmp_path / "n")}


def test_a_file_too_large_to_copy_is_refused(tmp_path, source):
    with (source / "tokenizer.model").open("wb") as file:
        file.truncate(2 * 10**8)  # takes no space
    with pytest.raises(ModelFileError, match=r"tokenizer.model: expected at most 100000000 bytes, got 200000000"):
        convert(source, tmp_path / "n", "float32")
    assert left_in(tmp_path) == []


# Odd values in config.json


def nested(depth):
    return '{"a":' * depth + "1" + "}" * depth


ODD = {
    "a pair of surrogates": '"\\ud83d\\ude00"',
    "letters of any script": '"Grüße, 語, \\u202e"',
    "NaN": "NaN",
    "Infinity": "[Infinity, -Infinity, 1e999]",
    "a large number": "1" * 4000,
    "a nested object": nested(49),
    "a control character": '"\\u0000\\u001b"',
    "": "{}",
}


def add_to_config(source, text):
    """Write more keys into config.json; return what it holds."""
    path = source / "config.json"
    path.write_text(path.read_text().rstrip()[:-1] + f", {text}}}", encoding="utf-8")
    return json.loads(path.read_bytes())


@pytest.mark.filterwarnings("ignore:.*ignored keys")
def test_odd_values_in_config_json_are_written_as_they_are(tmp_path, source):
    before = add_to_config(source, ", ".join(f'"{name}": {value}' for name, value in ODD.items()))
    convert(source, tmp_path / "n", "float32")
    after = json.loads((tmp_path / "n" / "config.json").read_bytes())
    assert {name: repr(after[name]) for name in ODD} == {name: repr(before[name]) for name in ODD}


@pytest.mark.filterwarnings("ignore:.*ignored keys")
@pytest.mark.parametrize("text", ['"odd": "\\ud800 and \\udfff"', '"odd": [{"\\udc80": 1}]'])
def test_half_a_pair_of_surrogates_is_written_or_refused(tmp_path, source, text):
    """JSON can hold it as an escape; it is no text, and may be refused."""
    before = add_to_config(source, text)
    try:
        convert(source, tmp_path / "n", "float32")
    except ModelFileError:
        assert left_in(tmp_path) == []
    else:
        assert json.loads((tmp_path / "n" / "config.json").read_bytes())["odd"] == before["odd"]


@pytest.mark.filterwarnings("ignore:.*ignored keys")
@pytest.mark.parametrize("depth", [900, 5000])
def test_a_config_json_nested_too_deeply_is_written_or_refused(tmp_path, source, depth):
    with contextlib.suppress(RecursionError):
        add_to_config(source, f'"odd": {nested(depth)}')
    try:
        convert(source, tmp_path / "n", "float32")
    except ModelFileError:
        assert left_in(tmp_path) == []
    else:
        assert json.loads((tmp_path / "n" / "config.json").read_bytes())["odd"]


def test_json_text_is_utf8_whatever_it_holds():
    keys = {"a": "\ud800", "b": "é", "c": math.inf}
    assert json.loads(json_text(keys).encode()) == keys
    deep = {}
    for _ in range(3000):
        deep = {"a": deep}
    with pytest.raises(ModelFileError, match="expected fewer objects or lists within each other"):
        json_text(deep)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*ignored keys")
def test_a_config_json_of_10_mb(tmp_path, source):
    path = source / "config.json"
    keys = json.loads(path.read_text()) | {"odd": ["x" * 100] * 100_000}
    path.write_text(json.dumps(keys))
    convert(source, tmp_path / "n", "float32")
    assert json.loads((tmp_path / "n" / "config.json").read_bytes())["odd"] == keys["odd"]


@unix
@pytest.mark.slow
def test_a_folder_whose_name_is_not_utf8(npllm, tmp_path):
    """Its name goes into a trace and into a page."""
    folder = tmp_path / os.fsdecode(b"m\xff")
    try:
        write_folder(folder, tokenizer=False)
    except OSError:
        pytest.skip("this file system has no such name")
    assert npllm("trace", "-m", folder, "--ids", "1,2", "-o", tmp_path / "x").code == 0
    assert read_trace(tmp_path / "x")[1]["model"].endswith("m\\udcff")
    assert npllm("inspect", "-m", folder, "--ids", "1", "--html", tmp_path / "page").code == 0
    assert '"name":"m\\\\udcff"' in (tmp_path / "page").read_text(encoding="utf-8")
    convert(folder, tmp_path / "n", "int8")


# The destination


@unix
def test_the_current_folder_may_be_the_destination(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert(source, ".", "float32")
    assert "config.json" in left_in(Path())
    assert load(".").config.family == "phi3"


@unix
def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path, source, monkeypatch):
    def denied(_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "n").mkdir()
    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(UsageError, match="n: cannot be written: Permission denied"):
        convert(source, tmp_path / "n", "float32")


@unix
@pytest.mark.slow
@pytest.mark.parametrize("target", ["empty", "new"])
def test_a_link_as_the_destination_leads_to_the_folder(tmp_path, source, target):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(target)
    convert(source, tmp_path / "link", "float32")
    assert (tmp_path / "link").is_symlink()
    assert "config.json" in left_in(tmp_path / target)


@pytest.mark.slow
def test_a_folder_within_the_source_may_be_the_destination(tmp_path, source):
    before = left_in(source)
    convert(source, source / "int8", "int8")
    assert left_in(source) == sorted([*before, "int8"])
    with pytest.raises(UsageError, match="got one with files in it"):
        convert(source, source, "int8")


@unix
@pytest.mark.parametrize("exists", [False, True])
def test_a_second_process_is_refused_at_once(tmp_path, source, monkeypatch, exists):
    if exists:
        (tmp_path / "n").mkdir()
    header, refused = write.header, []

    def meanwhile(*arguments):
        with pytest.raises(UsageError, match="n: another process is writing it") as error:
            convert(source, tmp_path / "n", "int8")
        refused.append(error)
        return header(*arguments)

    monkeypatch.setattr(write, "header", meanwhile)
    convert(source, tmp_path / "n", "float32")
    assert len(refused) == 1
    assert left_in(tmp_path) == ["n"]


def test_a_source_that_is_cut_short_while_it_is_read(tmp_path, source, monkeypatch):
    header = write.header

    def meanwhile(*arguments):
        os.truncate(source / "model.safetensors", 100_000)
        return header(*arguments)

    monkeypatch.setattr(write, "header", meanwhile)
    monkeypatch.setattr(write, "read_ahead", lambda read, jobs, waiting: (read(job) for job in jobs))
    with pytest.raises(ModelFileError, match="the file was cut short while it was read"):
        convert(source, tmp_path / "n", "float32")
    assert left_in(tmp_path) == []


# The end of the process

CHILD = """
import sys, time
from npllm.checkpoint import write
from npllm.cli.main import main
header = write.header
def slow(*arguments):
    print("writing", flush=True)
    time.sleep(60)
write.header = slow
sys.exit(main(sys.argv[1:]))
"""


def started(*arguments):
    """A conversion that has its temporary folder, and does not go on."""
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, "convert", *map(str, arguments), "--dtype", "float32"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "writing\n"
    return process


@unix
@pytest.mark.slow
@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGQUIT", "SIGINT"])
@pytest.mark.parametrize("exists", [False, True])
def test_a_signal_leaves_nothing_and_ends_the_process_as_ever(tmp_path, source, name, exists):
    if exists:
        (tmp_path / "n").mkdir()
    with started(source, tmp_path / "n") as process:
        assert len(list(tmp_path.rglob("*.part"))) == 1
        process.send_signal(getattr(signal, name))
        assert process.wait(timeout=60) == (130 if name == "SIGINT" else -getattr(signal, name))
        assert process.stderr.read() == ("\n" if name == "SIGINT" else "")
    assert [path.name for path in tmp_path.rglob("*")] == ["n"] * exists


@unix
@pytest.mark.slow
@pytest.mark.parametrize("exists", [False, True])
def test_after_kill_9_the_next_run_removes_what_is_left(tmp_path, source, exists):
    place = tmp_path / "n"
    if exists:
        place.mkdir()
    with started(source, place) as process:
        process.kill()
    assert len(list(tmp_path.rglob("*.part"))) == 1
    (tmp_path / f"n.{process.pid}.part").mkdir()  # of an older version
    with started(source, tmp_path / "other") as process:
        assert len(list(tmp_path.rglob("*.part"))) == 3  # that of another destination stays
        process.terminate()
    convert(source, place, "float32")
    assert load(place).config.family == "phi3"
    assert not list(place.rglob("*.part"))
    assert len(list(tmp_path.glob("*.part"))) == 1


@unix
@pytest.mark.slow
def test_a_terminated_trace_leaves_nothing(tmp_path, source):
    """It is written in a moment, so the test stops it there."""
    body = CHILD.replace("npllm.checkpoint import write", "npllm.storage import files as write").replace(
        "header", "sync"
    )
    (tmp_path / "x").write_text("old")
    arguments = [sys.executable, "-c", body.replace("write.sync = slow", "write.keep_owner_and_mode = slow")]
    arguments += ["trace", "Hello", "-m", source, "-o", tmp_path / "x"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        process.terminate()
    assert process.returncode == -signal.SIGTERM
    assert left_in(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "old"


# Forks once for each delay, because starting Python takes longer than the commands.
FORKS = """
import os, signal, sys, time
from npllm.cli.main import main
for name in ("convert", "trace", "inspect"):
    __import__(f"npllm.cli.{name}")
place, *arguments = sys.argv[1:]
whole = None
for number in range(26):
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        try:
            os._exit(main(arguments))
        except KeyboardInterrupt:  # before or after main
            os._exit(130)
    if whole is not None:  # the first one is not interrupted: it tells how long it takes
        time.sleep(whole * number / 20)
        os.kill(process, signal.SIGINT)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), sorted(os.listdir(place)), flush=True)
    whole = time.monotonic() - started if whole is None else whole
    if os.path.isdir(place + "/n"):
        assert "config.json" in os.listdir(place + "/n")
        os.rename(place + "/n", place + f"/../n{number}")
"""


@unix
@pytest.mark.slow
@pytest.mark.parametrize("command", ["convert", "trace", "inspect"])
def test_ctrl_c_at_any_time_leaves_nothing(tmp_path, source, command):
    place = tmp_path / "place"
    place.mkdir()
    arguments = {
        "convert": ["convert", source, place / "n", "--dtype", "float32", "--shard-size", "1e-5"],
        "trace": ["trace", "-m", source, "--ids", "1,2,3", "-o", place / "x"],
        "inspect": ["inspect", "-m", source, "--ids", "1,2,3", "--html", place / "x"],
    }[command]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, *map(str, [place, *arguments])],
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 26, done.stderr
    assert lines[0][:2] == "0 "
    assert {line.split(" ", 1)[0] for line in lines} <= {"130", "0"}
    assert {line.split(" ", 1)[1] for line in lines} <= {"[]", "['n']", "['x']"}
