"""Check npllm's run-time dependencies, as they are installed here, for known vulnerabilities.

    python tools/checks/audit.py

pip-audit asks PyPI about the packages that setup.cfg requires, and about those that they require; not about the extras.
Exits with 1 if one has a known vulnerability. If neither PyPI nor OSV can be reached, it says that the check was
skipped, and exits with 0.
"""

import json
import re
import subprocess
import sys
import tempfile
from importlib.metadata import distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SERVICES = ("pypi", "osv")
UNREACHABLE = re.compile(
    r"requests\.exceptions\.\w*(Connection|Proxy|Timeout)\w*:|Could not connect to .* vulnerability feed"
)
UNKNOWN = "not found on PyPI"  # every one of these packages is on PyPI: without them it is only a mirror


def run_time(name: str = "npllm-reference") -> dict[str, str]:
    """The versions of what a package requires here, without extras, and of what that requires."""
    versions: dict[str, str] = {}
    waiting = [name]
    while waiting:
        for line in distribution(waiting.pop()).requires or ():
            requirement = Requirement(line)
            needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            name = canonicalize_name(requirement.name)
            if needed and name not in versions:
                versions[name] = distribution(name).version
                waiting.append(name)
    return versions


def ask(service: str, versions: dict[str, str]) -> list[dict] | None:
    """What a service knows about the packages; None if it cannot be reached. Any other failure ends this program."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{name}=={version}\n" for name, version in versions.items())
        file.flush()
        command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--format", "json"]
        command += ["--disable-pip", "--no-deps", "--progress-spinner", "off", "--requirement", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    if not done.stdout.strip():
        if UNREACHABLE.search(done.stderr):
            return None
        sys.exit(f"pip-audit failed:\n{done.stderr}")
    packages = json.loads(done.stdout)["dependencies"]
    if all(UNKNOWN in package.get("skip_reason", "") for package in packages):
        return None
    return packages


def main() -> int:
    versions = run_time()
    for service in SERVICES:
        packages = ask(service, versions)
        if packages is None:
            continue
        found = [(package, vulnerability) for package in packages for vulnerability in package.get("vulns", ())]
        for package, vulnerability in found:
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
        unknown = [package["skip_reason"] for package in packages if "skip_reason" in package]
        print(*unknown, sep="\n", end="\n" if unknown else "")
        print(f"{service}: {len(packages)} packages, {len(found)} known vulnerabilities, {len(unknown)} not checked")
        return 1 if found or unknown else 0
    print("skipped: the vulnerability service cannot be reached")
    return 0


if __name__ == "__main__":
    sys.exit(main())
