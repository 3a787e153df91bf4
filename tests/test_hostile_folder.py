"""An untrusted folder as the current one: none of its modules run, whichever way npllm is started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import unix

import npllm

# Modules that npllm imports, of Python and of libraries. What `python -m` imports before npllm, such as importlib, runs
# unless Python is started with -P or -I.
NAMES = (
    *("argparse", "array_api_compat", "concurrent", "dataclasses", "decimal", "enum", "huggingface_hub", "jaxtyping"),
    *("jinja2", "json", "logging", "math", "ml_dtypes", "multiprocessing", "numpy", "pickle", "queue", "random", "re"),
    *(
        "resource",
        "safetensors",
        "secrets",
        "shutil",
        "signal",
        "socket",
        "statistics",
        "string",
        "struct",
        "subprocess",
    ),
    *("tempfile", "threading", "threadpoolctl", "tokenizers", "tqdm", "traceback", "typing", "unicodedata", "uuid"),
)
COMMANDS = {
    "help": ["--help"],
    "generate": ["generate", "Hello", "-n", "2", "--chat"],
    "tokenize": ["tokenize", "Hello"],
    "inspect": ["inspect", "Hello"],
    "trace": ["trace", "Hello", "-o", "values"],
    "bench": ["bench", "load", "--repeat", "1"],  # starts a process of its own
}


@pytest.fixture
def hostile(tmp_path):
    """A folder of modules that write a file when they are imported."""
    path = tmp_path / "hostile"
    path.mkdir()
    for name in NAMES:
        source = f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + ' ')\nraise ImportError('hostile')\n"
        if name in ("jinja2", "concurrent"):
            (path / name).mkdir()
            (path / name / "__init__.py").write_text(source)
        else:
            (path / f"{name}.py").write_text(source)
    return path


def run(where, *command, **variables):
    """The command, run in this folder; what ran of it."""
    known = {"PYTHONPATH": str(Path(npllm.__file__).parent.parent), "NPLLM_DEVICE": "", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*map(str, command)], cwd=where, env=os.environ | known | variables, capture_output=True, text=True, timeout=120
    )
    ran = where.parent / "ran"
    return done, ran.read_text() if ran.exists() else ""


def test_the_trap_works(hostile):
    assert run(hostile, sys.executable, "-c", "import numpy")[1] == "numpy "


@pytest.mark.parametrize(
    "start",
    [
        ["-m", "npllm"],
        pytest.param(["-mnpllm"], marks=pytest.mark.slow),
        pytest.param(["-P", "-m", "npllm"], marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_module_of_the_current_folder_does_not_run(hostile, start):
    done, ran = run(hostile, sys.executable, *start, "--version")
    assert (done.returncode, ran) == (0, ""), done


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_runs_a_module_of_the_current_folder(hostile, folder, command):
    done, ran = run(hostile, sys.executable, "-m", "npllm", *COMMANDS[command], NPLLM_MODEL=str(folder))
    assert (done.returncode, ran) == (0, ""), done


@unix
@pytest.mark.slow
@pytest.mark.parametrize("command", ["generate", "bench"])
def test_nor_does_the_console_script(hostile, folder, command):
    script = hostile.parent / "npllm"  # as pip writes it
    lines = "import sys\nfrom npllm.__main__ import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
    script.write_text(f"#!{sys.executable}\n{lines}")
    script.chmod(0o755)
    done, ran = run(hostile, script, *COMMANDS[command], NPLLM_MODEL=str(folder))
    assert (done.returncode, ran) == (0, ""), done


@pytest.mark.parametrize(
    ("start", "stays"),
    [
        (["-c", "import npllm, sys; print(sys.path[0] == '')"], True),  # no -m: the user's own program
        (["-m", "other", "-m", "npllm"], True),  # another program with an -m of its own
    ],
    ids=["-c", "other"],
)
def test_the_path_of_other_programs_stays(hostile, start, stays):
    (hostile / "other.py").write_text("import os, sys, npllm\nprint(sys.path[0] == os.getcwd())\n")
    done, ran = run(hostile, sys.executable, *start)
    assert (done.stdout, ran) == (f"{stays}\n", ""), done


@pytest.mark.slow
def test_a_checkout_runs_where_nothing_is_installed(hostile, folder):
    """Its folder goes to the end of the path: a process that we start finds npllm there, and NumPy elsewhere."""
    (hostile / "npllm").symlink_to(Path(npllm.__file__).parent, target_is_directory=True)
    start = [sys.executable, "-m", "npllm", *COMMANDS["bench"]]
    done, ran = run(hostile, *start, NPLLM_MODEL=str(folder), PYTHONPATH="")
    assert (done.returncode, ran) == (0, ""), done


@unix
def test_in_a_folder_that_is_deleted(tmp_path):
    (tmp_path / "gone").mkdir()
    command = ["bash", "-c", 'rmdir "$PWD"; exec "$@"', "-", sys.executable, "-m", "npllm", "--version"]
    done, _ = run(tmp_path / "gone", *command)
    assert (done.returncode, done.stderr) == (0, "")
