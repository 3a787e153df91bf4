"""How long BLAS threads spin: set only by the command line and by `short_spin`."""

import os
import subprocess
import sys

import pytest

VARIABLE = "OPENBLAS_THREAD_TIMEOUT"
HEAVY = "numpy", "jaxtyping", "tokenizers", "jinja2", "cupy"


def run(program, **variables):
    """What the program prints in a separate process, with only these BLAS environment variables set."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | variables
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.split(), done.stderr


def test_importing_npllm_changes_no_environment_variable():
    program = "import os; before = dict(os.environ); import npllm, npllm.loop; print(dict(os.environ) == before)"
    assert run(program) == (["True"], "")


def test_a_library_user_sets_it_before_numpy():
    program = f"import os; from npllm.devices.blas import short_spin; print(short_spin(), os.environ['{VARIABLE}'])"
    assert run(program) == (["True", "20"], "")


def test_a_value_that_is_set_stays():
    program = f"import os; from npllm.devices.blas import short_spin; print(short_spin(), os.environ['{VARIABLE}'])"
    assert run(program, **{VARIABLE: "24"}) == (["True", "24"], "")


def test_after_numpy_it_is_too_late_and_says_so():
    program = (
        f"import numpy, os; from npllm.devices.blas import short_spin\nprint(short_spin(), '{VARIABLE}' in os.environ)"
    )
    out, err = run(program)
    assert out == ["False", "False"]
    assert "short_spin: too late, NumPy is imported already" in err


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_the_command_line_sets_it_and_imports_numpy_only_for_a_command(argument):
    """Both ways to start it: the console entry point and python -m npllm."""
    for start in ("from npllm.cli.main import main", "from npllm.__main__ import main"):
        program = (
            f"import contextlib, io, os, sys\n{start}\n"
            f"print(*({{*{HEAVY}}} & {{*sys.modules}}))\n"
            f"with contextlib.redirect_stdout(io.StringIO()):\n    code = main(['{argument}'])\n"
            f"print(code, os.environ['{VARIABLE}'], *({{*{HEAVY}}} & {{*sys.modules}}))"
        )
        assert run(program) == (["0", "20"], "")


def test_a_command_runs_with_it():
    program = (
        "import os, sys\nfrom npllm.cli.main import main\n"
        f"code = main(['tokenize', '--help'])\nprint(code, os.environ['{VARIABLE}'], 'numpy' in sys.modules)"
    )
    assert run(program)[0][-3:] == ["0", "20", "True"]
