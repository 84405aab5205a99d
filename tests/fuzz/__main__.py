"""Run the fuzzer: `python -m tests.fuzz --seed 1 --steps 100000 [--hosts 3]`.

With `--sabotage` it runs on copies of the package in which a rule of order or of counting is
broken, and must notice each within 10,000 steps of a seed; `tox -e hunt` does just that.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time

PIECE = 2000  # steps of one world; then it must be quiet, and a new one begins


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--hosts", type=int, choices=(2, 3), default=3)
    parser.add_argument("--lazy", action="store_true", help="start coroutines as trio does")
    parser.add_argument("--alone", action="store_true", help="take the short way, as on asyncio")
    parser.add_argument("--profile", help="the only one, in place of all by turns")
    parser.add_argument("--dialect", default="cbor", help="what they speak")
    parser.add_argument("--sabotage", nargs="*", metavar="WORD", help="breaks with such a name")
    options = parser.parse_args()

    if options.sabotage is not None:
        from .hunt import hunt

        sys.exit(hunt(options.seed, options.sabotage))
    run(
        options.seed,
        options.steps,
        hosts=options.hosts,
        eager=not options.lazy,
        alone=options.alone,
        profile=options.profile,
        dialect=options.dialect,
    )


def run(
    seed: int,
    steps: int,
    *,
    hosts: int,
    eager: bool,
    alone: bool,
    profile: str | None,
    dialect: str = "cbor",
) -> None:
    """So many steps, in worlds of a limited length."""
    from .world import PROFILES, World  # not above: with --sabotage it comes from the copies

    if profile not in {None, *PROFILES}:
        sys.exit(f"no profile {profile!r}: there are {', '.join(PROFILES)}")
    gc.collect()
    gc.freeze()  # what is here stays, and is no business of the collections to come
    started = time.monotonic()
    done = 0
    while done < steps:
        world_seed = seed * 1_000_003 + done
        world = World(
            world_seed, hosts=hosts, eager=eager, alone=alone, profile=profile, dialect=dialect
        )
        piece = min(PIECE, steps - done)
        try:
            world.run(piece)
        except BaseException:
            print("\n".join(world.history[-60:]))
            print(f"failed: world seed {world_seed}, {hosts} hosts, after {done} steps before it")
            raise
        done += piece
    seconds = time.monotonic() - started
    print(f"{done} steps, {hosts} hosts, seed {seed}: all arrived, {seconds:.0f} s")


if __name__ == "__main__":
    main()
