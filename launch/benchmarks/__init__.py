"""The benchmarks that launch/benchmark.py offers: each module has `run(argv) -> int`."""
