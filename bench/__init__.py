"""Benchmarks: each starts Baton and its peer in one run on one machine, alternates them and writes bench/results.

    rounds.py   the order of rounds, medians, spreads, paired ratios (pure)
    rows.py     one result row, the JSON file and the printed table
    cpu.py      CPU seconds of a process and of a process tree
    kv.py, gateway.py, engine.py   one benchmark each, `make bench-NAME`

Does not belong here: anything the product needs. The peers live in environments of their own, .venv-bench-NAME.
"""
