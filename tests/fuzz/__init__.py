"""A fuzzer with an oracle: `python -m tests.fuzz --seed 1 --steps 100000`."""
