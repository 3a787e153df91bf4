"""npllm completion: what bash offers when Tab is pressed."""

import shutil
import subprocess

import pytest
from command_line import fails, unix

from npllm.cli.completion import SHELLS
from npllm.cli.main import COMMANDS

BASH = shutil.which("bash")
# Tab, as bash presses it: the words in COMP_WORDS, then the function that complete -p names for npllm.
TAB = """
source "./$1"; shift; words=("$@")
COMP_WORDS=("${words[@]}"); COMP_CWORD=$((${#words[@]} - 1)); COMP_LINE="${words[*]}"; COMP_POINT=${#COMP_LINE}
function=$(complete -p npllm); function=${function#*-F }; ${function% npllm}
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """What bash offers for the last of these words, in a folder with two files."""
    place = tmp_path_factory.mktemp("place")
    (place / "model.gguf").touch()
    (place / "models").mkdir()

    def press(script, *words):
        (place / "script").write_text(script)
        done = subprocess.run([BASH, "-c", TAB, "-", "script", *words], cwd=place, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    return press


@unix
@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_bash_completes_commands_options_values_and_files(npllm, tab):
    pytest.importorskip("shtab")
    script = npllm("completion", "bash").out
    assert tab(script, "npllm", "") == ["help", *COMMANDS]
    assert tab(script, "npllm", "ge") == ["generate"]
    assert tab(script, "npllm", "help", "tok") == ["tokenize"]
    assert tab(script, "npllm", "generate", "--temp") == ["--temperature"]
    assert tab(script, "npllm", "generate", "Hello", "--dtype", "fl") == ["float32", "float16"]
    assert tab(script, "npllm", "bench", "pre") == ["prefill"]
    assert sorted(tab(script, "npllm", "show", "-m", "mod")) == ["model.gguf", "models"]
    assert sorted(tab(script, "npllm", "compare", "models", "mod")) == ["model.gguf", "models"]
    assert tab(script, "npllm", "show", "--cache-dir", "mod") == ["models"]


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_script(npllm, shell, tmp_path):
    pytest.importorskip("shtab")
    done = npllm("completion", shell)
    assert (done.code, done.err) == (0, "")
    if shutil.which(shell):
        (tmp_path / "script").write_text(done.out)
        assert subprocess.run([shell, "-n", tmp_path / "script"], capture_output=True).stderr == b""


def test_without_shtab_it_says_how_to_get_it(npllm, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "shtab", None)
    fails(npllm("completion", "bash"), 3, "pip install shtab")
    fails(npllm("completion", "csh"), 2, "invalid choice: 'csh'")
