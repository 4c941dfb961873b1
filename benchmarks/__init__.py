"""Benchmarks: each measures one thing and writes `results/NAME.json`. Speed is never asserted in tests."""
