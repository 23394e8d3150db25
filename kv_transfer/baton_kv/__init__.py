"""Moves named KV blocks from a prefill process to a decode process.

    server.py  KvServer, SendLease   prefill side: leases, tickets, offers, sends
    client.py  KvClient              decode side: pull() one transfer's blocks into chosen blocks
    transport.py, transports/        how bytes move beside the gRPC control stream: ucx, tcp, cma, inproc
    session_send.py, session_pull.py the two state tables of one transfer (pure)
    copy_plan.py, checksums.py, leases.py, admission.py, pulse.py   the other decisions (pure)

Belongs here: everything between "these blocks are final" and "these blocks are verified".
Does not belong here: where blocks come from, what is in them, HTTP, metrics libraries.
"""
