"""Benchmarks: ratios measured in one run, interleaved, medians of CPU time.

``python -m benchmarks`` runs all of them, ``python -m benchmarks engine`` one. Each module
``bench_NAME`` has ``run(full) -> list of rows``.
"""
