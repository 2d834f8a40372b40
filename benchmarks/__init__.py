"""The experiments that show what path space is good for: `python -m benchmarks --help`."""
