"""Processes that the benchmarks run, counterparts to the scripts of tests/interop/js."""
