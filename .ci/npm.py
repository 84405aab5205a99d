"""Bring what a lock file names: `python .ci/npm.py FOLDER`, which is `npm ci`, where that is.

Without Node its tests skip, and say so; with CI=true that is a failure.
"""

import os
import shutil
import subprocess
import sys


def main(folder: str) -> int:
    npm = shutil.which("npm")
    if npm is not None:
        return subprocess.run([npm, "ci", "--prefix", folder], check=False).returncode

    print("npm: not installed, so the tests against the real package are skipped", file=sys.stderr)
    return os.environ.get("CI") == "true"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
