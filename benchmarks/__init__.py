"""Benchmarks of hyperlog beside the unmodified JavaScript packages; see docs/benchmarks.md.

One module answers one question, stated in its docstring; `python -m benchmarks` asks them.
"""
