"""Run the fuzzer: `python -m tests.fuzz --seed 1 --steps 100000 [--hosts 3]`."""

from __future__ import annotations

import argparse
import time

from .world import World

PIECE = 2000  # steps of one world; then it must be quiet, and a new one begins


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--hosts", type=int, choices=(2, 3), default=3)
    parser.add_argument("--lazy", action="store_true", help="start coroutines as trio does")
    options = parser.parse_args()

    started = time.monotonic()
    done = 0
    while done < options.steps:
        seed = options.seed * 1_000_003 + done
        world = World(seed, hosts=options.hosts, eager=not options.lazy)
        steps = min(PIECE, options.steps - done)
        try:
            world.run(steps)
        except BaseException:
            print("\n".join(world.history[-60:]))
            print(f"failed: world seed {seed}, {options.hosts} hosts, after {done} steps before it")
            raise
        done += steps
    seconds = time.monotonic() - started
    print(f"{done} steps, {options.hosts} hosts, seed {options.seed}: all arrived, {seconds:.0f} s")


if __name__ == "__main__":
    main()
