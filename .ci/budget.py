"""Run a command within a budget: `python .ci/budget.py SECONDS COMMAND [ARGUMENT...]`.

pytest ends a test that hangs, but not a child process that outlives it, and the other tools
have no limit at all. The command leads a process group of its own; what is left of the group
ends with it.
"""

import contextlib
import os
import signal
import subprocess
import sys
from typing import NoReturn


def main(seconds: float, command: list[str]) -> int:
    # tox interrupts with SIGINT, then SIGTERM; both must end the group, not this process alone.
    signal.signal(signal.SIGTERM, _leave)
    process = subprocess.Popen(command, start_new_session=True)

    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        print(f"budget: {seconds:g} s are over, ending: {' '.join(command)}", file=sys.stderr)
        process.send_signal(signal.SIGINT)  # pytest then still names the tests that failed
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)

        return 124  # as coreutils' timeout says it
    finally:
        _end_group(process)


def _leave(signum: int, _frame: object) -> NoReturn:
    sys.exit(128 + signum)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End whatever is left of the group, also when its leader has gone."""
    if sys.platform == "win32":
        process.kill()
        return

    with contextlib.suppress(ProcessLookupError):  # nothing was left, the usual end
        os.killpg(process.pid, signal.SIGKILL)

    process.wait()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
