"""One module per benchmark, each with main(argv); `scripts/benchmark.py NAME` runs it."""
