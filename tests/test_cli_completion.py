"""npllm completion: what bash offers when Tab is pressed."""

import shutil
import subprocess

import pytest
from command_line import fails, unix

from npllm.cli.completion import SHELLS
from npllm.cli.main import COMMANDS

BASH = shutil.which("bash")
# Tab, as bash presses it: the words in COMP_WORDS, then the function that complete -p names for npllm.
TAB = r"""
source ./script; function=$(complete -p npllm); function=${function#*-F }; function=${function% npllm}
for COMP_LINE in "$@"; do
    COMP_POINT=${#COMP_LINE}; read -ra COMP_WORDS <<< "$COMP_LINE"
    [[ $COMP_LINE == *\  ]] && COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=(); $function; echo "${COMPREPLY[*]}"
done
"""


@unix
@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_bash_completes_commands_options_values_and_files(npllm, tmp_path):
    pytest.importorskip("shtab")
    (tmp_path / "model.gguf").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "script").write_text(npllm("completion", "bash").out)
    expected = {
        "npllm ": " ".join(["help", *COMMANDS]),
        "npllm ge": "generate",
        "npllm help tok": "tokenize",
        "npllm generate --temp": "--temperature",
        "npllm generate Hello --dtype fl": "float32 float16",
        "npllm bench pre": "prefill",
        "npllm show -m model.": "model.gguf",
        "npllm compare models model.": "model.gguf",
        "npllm show --cache-dir mod": "models",
    }
    done = subprocess.run([BASH, "-c", TAB, "-", *expected], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(zip(expected, done.stdout.splitlines(), strict=True)) == expected


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
