"""One request's life: API, admission, routing brain, relay.

Belongs here: who may ask, which pair of workers answers, what they are sent, how the answer gets back.
Does not belong here: how tokens are made (engine) or how KV moves (kv_transfer).

    access, routing, index, registry, legs, events, timeline, settings,
    kube_fleet                                                           pure
    app -> flow -> tokenising, admission, dispatch -> attempt -> relay    one request
    strand                                                               what runs a request, without a task
    source, kube_source -> discovery                                     the fleet, live
    many -> seat -> board, ring                                          several processes on one port
    job, process, __main__                                               what is shared, wiring
"""
