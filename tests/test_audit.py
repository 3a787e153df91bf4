"""tools/checks/audit.py, with the answers of pip-audit written down: here no service may be in reach."""

import json
import subprocess

import bridge
import pytest

SAFE = {"name": "numpy", "version": "2.1.0", "vulns": []}
VULNERABLE = {
    "name": "jinja2",
    "version": "3.1.2",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.3"], "aliases": [], "description": ""}],
}
UNKNOWN = {"name": "numpy", "skip_reason": "Dependency not found on PyPI and could not be audited: numpy (2.1.0)"}
OFFLINE = "requests.exceptions.ConnectionError: HTTPSConnectionPool(host='index.example', port=443)"


@pytest.fixture
def audit(monkeypatch, capsys):
    """The tool's exit code and output, for what pip-audit writes to stdout and to stderr."""
    tool = bridge.tool("audit")

    def run(packages, stderr=""):
        out = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
        monkeypatch.setattr(
            subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, out, stderr)
        )
        return tool.main(), capsys.readouterr().out

    return run


def test_a_known_vulnerability_fails(audit):
    code, out = audit([SAFE, VULNERABLE])
    assert (code, out.splitlines()[0]) == (1, "jinja2 3.1.2: PYSEC-1, fixed in 3.1.3")


def test_none_passes(audit):
    assert audit([SAFE]) == (0, "pypi: 1 packages, 0 known vulnerabilities, 0 not checked\n")


@pytest.mark.parametrize(("packages", "stderr"), [([UNKNOWN], ""), (None, OFFLINE)])
def test_without_the_service_it_says_that_it_was_skipped(audit, packages, stderr):
    assert audit(packages, stderr) == (0, "skipped: the vulnerability service cannot be reached\n")


def test_a_package_that_was_not_checked_fails(audit):
    assert audit([SAFE, UNKNOWN])[0] == 1


def test_another_failure_is_not_taken_for_a_service_out_of_reach(audit):
    with pytest.raises(SystemExit, match="pip-audit failed"):
        audit(None, "error: unrecognized arguments")


def test_it_asks_about_what_npllm_requires_and_nothing_of_the_extras():
    versions = bridge.tool("audit").run_time()
    assert {"numpy", "tokenizers", "markupsafe"} <= {*versions}
    assert not {"torch", "pytest", "cupy-cuda12x"} & {*versions}
