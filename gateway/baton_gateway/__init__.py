"""One request's life: API, admission, routing brain, relay.

Belongs here: who may ask, which pair of workers answers, what they are sent, how the answer gets back.
Does not belong here: how tokens are made (engine) or how KV moves (kv_transfer).

    settings, access, routing, index, registry, legs, events, timeline    pure
    app -> flow -> tokenising, admission, attempt -> relay                 one request
    discovery                                                             the fleet, live
    process, __main__                                                     wiring
"""
