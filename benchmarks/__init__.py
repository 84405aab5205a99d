"""What the library costs, next to the floor below it: ``python -m benchmarks``. See README.md."""
