"""HTTP/1.1 server and client on asyncio protocols, SSE, a gRPC shell and the stubs generated from wire/proto; and how
to ask a Kubernetes API server and keep a mirror of what it has (`kube_access`, `kube_api`, `kube_watch`).

Belongs here: bytes to requests and back, framing, limits, connection life, back-pressure.
Does not belong here: routes, JSON bodies other than the error body, authentication, TLS of a server (a proxy ends it),
HTTP/2.

A request's way through the server: `http_connection` cuts the head off and has `http_head` judge it, collects the body
(`http_body`), hands an `http_exchange.Exchange` to the handler, and takes the next request when that one is answered.
"""
