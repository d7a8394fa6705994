"""How often the gate errs, on documents of real results: `python -m benchmarks.gate` (see `__main__`)."""
