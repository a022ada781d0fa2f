"""The benches: what `make bench` measures, and how. `python -m benchmarks --help` tells the options."""
