"""Whether a version in constraints.txt has a known vulnerability: `pip-audit --strict`, as `make audit` runs it.

Where the database cannot be reached this says so and passes: without --strict pip-audit would pass as well, and say
nothing.
"""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A release with known vulnerabilities: an index that does not list them, as mirrors do not, has no database.
KNOWN = "https://pypi.org/pypi/pillow/9.0.0/json"
SECONDS = 10


def why_not() -> str:
    """Why the database of vulnerabilities cannot be asked; empty where it can."""
    try:
        with urllib.request.urlopen(KNOWN, timeout=SECONDS) as answer:
            found = json.load(answer)
    except (OSError, ValueError) as error:
        return f"{KNOWN}: {error}"
    return "" if isinstance(found, dict) and found.get("vulnerabilities") else f"{KNOWN} knows of no vulnerability"


def main() -> int:
    if reason := why_not():
        print(f"skipped: the database of vulnerabilities cannot be reached ({reason}); nothing was audited")
        return 0
    words = ["--strict", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--requirement", "constraints.txt"]
    return subprocess.run([sys.executable, "-m", "pip_audit", *words], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
