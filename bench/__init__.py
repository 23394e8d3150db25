"""Benchmarks: each starts Baton and its peer in one run on one machine, alternates them and writes bench/results.

    rounds.py   the order of rounds, medians, spreads, paired ratios (pure)
    rows.py     one result row, the JSON file and the printed table
    cpu.py      CPU seconds of a process and of a process tree
    kv.py (kv_baton, kv_prefill, kv_perftest, kv_nixl, nixl_pair, kv_store)   make bench-kv
    gateway.py (gateway_peers, mock/worker.c, mock/load.c: gcc at run time)   make bench-gateway
    engine.py (engine_model, engine_baton, vllm_engine)                       make bench-engine
    pd.py (pd_servers, pd_proxy, pd_client)                                   make bench-pd
    requirements/, results/   what each peer environment holds; what the last committed run gave

nixl_pair.py and vllm_engine.py run in the peers' environments. CPU time is the figure to trust on a shared machine.

Does not belong here: anything the product needs. The peers live in environments of their own, .venv-bench-NAME.
"""
