"""One file per claim in the README; each runs as `python -m benchmarks.NAME [--data DIR] [--quick]`."""
