"""Byte streams that two readers of HTTP/1.1 have read differently somewhere, each with our verdict.

Sources: RFC 9112 section 11.2; Kettle, "HTTP Desync Attacks" (2019) and "HTTP/1.1 must die" (2025); the advisories of
llhttp and h11.
"""

from __future__ import annotations

from .readers import Read

GOOD = b"GET /ok HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"

LENGTHS = {
    "length before chunked": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG",
    "chunked before length": POST
    + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\nGPOST / HTTP/1.1\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 6\r\nContent-Length: 5\r\n\r\n12345G",
    "one length twice": POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n12345",
    "a list of lengths": POST + b"Content-Length: 5, 6\r\n\r\n12345G",
    "a list of one length twice": POST + b"Content-Length: 5, 5\r\n\r\n12345",
    "a second length with a space": POST + b"Content-Length: 5\r\ncontent-length : 6\r\n\r\n12345G",
    "length folded away": POST + b"Content-Length: 0\r\n Content-Length: 5\r\n\r\nhello",
    "length on the next line": POST + b"Content-Length:\r\n 5\r\n\r\nhello",
    "fold with a tab": POST + b"Content-Length: 5\r\n\tx: y\r\n\r\nhello",
    "underscore": POST + b"Content_Length: 5\r\n\r\nhello",
    "length with an underscore": POST + b"Content-Length: 1_0\r\n\r\n0123456789",
    "digits of another script": POST + b"Content-Length: \xd9\xa5\r\n\r\nhello",
    "NUL in the length": POST + b"Content-Length: 5\x00\r\n\r\nhello",
    "vertical tab in the length": POST + b"Content-Length: 5\x0b\r\n\r\nhello",
    "length of 2^64 and 5": POST + b"Content-Length: 18446744073709551621\r\n\r\nhello",
    "plus": POST + b"Content-Length: +5\r\n\r\nhello",
    "minus": POST + b"Content-Length: -5\r\n\r\nhello",
    "hexadecimal": POST + b"Content-Length: 0x5\r\n\r\nhello",
    "a space inside": POST + b"Content-Length: 1 0\r\n\r\n0123456789",
    "a fraction": POST + b"Content-Length: 5.0\r\n\r\nhello",
    "an empty length": POST + b"Content-Length: \r\n\r\nhello",
    "a quoted length": POST + b'Content-Length: "5"\r\n\r\nhello',
}
CODINGS = {
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "chunked last of two": POST + b"Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "one coding twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a parameter": POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n",
    "vertical tab": POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "no-break space": POST + b"Transfer-Encoding:\xa0chunked\r\n\r\n0\r\n\r\n",
    "quoted": POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n',
    "coding on the next line": POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "an empty coding": POST + b"Transfer-Encoding: \r\n\r\n0\r\n\r\n",
    "after a bare LF": POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "after a bare CR": POST + b"X: y\rTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "CR in the name": POST + b"Transfer\r-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "NUL before the name": POST + b"\x00Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "underscored coding": POST + b"Transfer_Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
}
CHUNKS = {
    "0x": CHUNKED + b"0x1\r\na\r\n0\r\n\r\n",
    "plus one": CHUNKED + b"+1\r\na\r\n0\r\n\r\n",
    "minus one": CHUNKED + b"-1\r\na\r\n0\r\n\r\n",
    "bare LF after the size": CHUNKED + b"1\na\r\n0\r\n\r\n",
    "bare LF in an extension": CHUNKED + b"1;a\nb\r\na\r\n0\r\n\r\n",
    "bare CR in an extension": CHUNKED + b"1;a\rb\r\na\r\n0\r\n\r\n",
    "NUL in an extension": CHUNKED + b"1;a\x00\r\na\r\n0\r\n\r\n",
    "an endless extension": CHUNKED + b"1;" + b"a" * 300 + b"\r\na\r\n0\r\n\r\n",
    "longer than said": CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    "bare LF after the data": CHUNKED + b"1\r\na\n0\r\n\r\n",
    "nothing after the data": CHUNKED + b"1\r\na0\r\n\r\n\r\n",
    "nine digits": CHUNKED + b"100000001\r\na\r\n0\r\n\r\n",
    "seventeen digits": CHUNKED + b"10000000000000001\r\na\r\n0\r\n\r\n",
    "space before the size": CHUNKED + b" 1\r\na\r\n0\r\n\r\n",
    "space after the size": CHUNKED + b"1 \r\na\r\n0\r\n\r\n",
    "no size": CHUNKED + b"\r\na\r\n0\r\n\r\n",
    "a request in the trailers": CHUNKED + b"0\r\nGET /x HTTP/1.1\r\n\r\n",
    "a folded trailer": CHUNKED + b"0\r\nx: y\r\n z\r\n\r\n",
    "a trailer with a space before its colon": CHUNKED + b"0\r\nx : y\r\n\r\n",
    "a length in the trailers": CHUNKED + b"1\r\na\r\n0\r\nx: y\r\ncontent-length: 9\r\n\r\n",
    "a bad length in the trailers": CHUNKED + b"1\r\na\r\n0\r\nContent-Length:&9\r\n\r\n",
    "a coding in the trailers": CHUNKED + b"1\r\na\r\n0\r\ntransfer-encoding: x\r\n\r\n",
    "a host in the trailers": CHUNKED + b"1\r\na\r\n0\r\nhost: b\r\n\r\n",
    "bare LF at the end": CHUNKED + b"0\n\n",
}
LINES = {
    "bare LF": b"GET / HTTP/1.1\nHost: a\n\n",
    "bare CR": b"GET / HTTP/1.1\rHost: a\r\r",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    "host with a space": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "fold before the first field": b"GET / HTTP/1.1\r\n Host: a\r\nHost: b\r\n\r\n",
    "a list of hosts": b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "an empty host": b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
    "a user in the host": b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    "a path in the host": b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
    "absolute form": b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "authority form": b"CONNECT b:80 HTTP/1.1\r\nHost: b:80\r\n\r\n",
    "CONNECT with a path": b"CONNECT / HTTP/1.1\r\nHost: a\r\n\r\n",
    "asterisk form": b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    "no slash": b"GET v1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "backslash and a bad host": b"GET //\\b HTTP/1.1\r\nHost: a b\r\n\r\n",
    "a fragment": b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
    "UTF-8 in the target": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the target": b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
    "vertical tab in the target": b"GET /\x0b HTTP/1.1\r\nHost: a\r\n\r\n",
    "an upgrade": b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "a space at the end": b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tab": b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
    "a method in lower case": b"get / HTTP/1.1\r\nHost: a\r\n\r\n",
    "version 1.10": b"GET / HTTP/1.10\r\nHost: a\r\n\r\n",
    "version 11": b"GET / HTTP/11\r\nHost: a\r\n\r\n",
    "version 1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "version in lower case": b"GET / http/1.1\r\nHost: a\r\n\r\n",
    "another protocol": b"GET / XHTTP/1.1\r\nHost: a\r\n\r\n",
    "version 0.9": b"GET / HTTP/0.9\r\nHost: a\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "blank lines first": b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL first": b"\x00GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a word": b"hello\r\n\r\n",
}
NAMES = {
    f"name with {bytes([byte])!r}": GET + b"X" + bytes([byte]) + b"y: 1\r\n\r\n"
    for byte in b'\x00\x01\x09\x0b\x7f\x80\xff "(),/;<=>?@[\\]{}_'
}
FIELDS = {
    **NAMES,
    "no name": GET + b": 1\r\n\r\n",
    "no colon": GET + b"x\r\n\r\n",
    "NUL in a value": GET + b"x: a\x00b\r\n\r\n",
    "escape in a value": GET + b"x: a\x1bb\r\n\r\n",
    "delete in a value": GET + b"x: a\x7fb\r\n\r\n",
    "bare CR in a value": GET + b"x: a\rb: c\r\n\r\n",
}
REFUSED: dict[str, tuple[bytes, int]] = {
    **{
        f"{group}: {name}": (raw, 400)
        for group, rows in (
            ("length", LENGTHS), ("coding", CODINGS), ("chunk", CHUNKS), ("line", LINES), ("field", FIELDS),
        )
        for name, raw in rows.items()
    },
    "size: head of 40 kB": (GET + b"x: " + b"a" * 40_000 + b"\r\n\r\n", 431),
    "size: 101 fields": (GET + b"".join(b"x-%d: 1\r\n" % n for n in range(100)) + b"\r\n", 431),
    "size: a target of 9 kB": (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "size: a body of 17 MiB announced": (POST + b"Content-Length: 17825792\r\n\r\n", 413),
    "size: a chunk of 4 GB": (CHUNKED + b"ffffffff\r\n", 413),
    "size: chunks of 17 MiB": (CHUNKED + b"1100000\r\n", 413),
    "encoding": (POST + b"Content-Encoding: gzip\r\nContent-Length: 1\r\n\r\n1", 415),
    "expectation": (GET + b"Expect: 200-ok\r\n\r\n", 417),
}  # fmt: skip

# h11 reads these as requests: we are stricter, each for its reason. The other way round there is no entry.
STRICTER: dict[str, str] = {
    "length: length before chunked": "RFC 9112 6.3: ought to be handled as an error; h11 takes the coding",
    "length: one length twice": "h11 folds equal ones into one; a peer may not",
    "length: a list of one length twice": "h11 folds equal ones into one; a peer may not",
    "length: length on the next line": "obs-fold: RFC 9112 5.2 allows 400",
    "length: underscore": "a CGI-like peer reads _ as -",
    "coding: coding on the next line": "obs-fold",
    "coding: after a bare LF": "h11 takes a bare LF for a line's end; a peer may not",
    "coding: underscored coding": "a CGI-like peer reads _ as -",
    "coding: HTTP/1.0": "RFC 9112 6.1: framing that HTTP/1.0 does not have is to be treated as faulty",
    "chunk: bare CR in an extension": "a peer may take the CR for the line's end",
    "chunk: NUL in an extension": "a control character",
    "chunk: an endless extension": "RFC 9112 7.1.1: a limit on extensions is wanted",
    "chunk: space after the size": "no whitespace stands there in the grammar",
    "chunk: a folded trailer": "obs-fold",
    "chunk: a length in the trailers": "RFC 9110 6.5.1: no framing in trailers",
    "chunk: a host in the trailers": "RFC 9110 6.5.1: no routing in trailers",
    "line: bare LF": "h11 takes a bare LF for a line's end; a peer may not",
    "line: a list of hosts": "no host",
    "line: an empty host": "no host",
    "line: a user in the host": "no host",
    "line: a path in the host": "no host",
    "line: absolute form": "its authority may differ from Host; only proxies need it",
    "line: asterisk form": "no route has it",
    "line: no slash": "no route has it",
    "line: backslash and a bad host": "no host",
    "line: a fragment": "RFC 9112 3.2: no part of a target",
    "line: an upgrade": "what follows would be another protocol",
    "line: a method in lower case": "no method",
    "line: version 1.2": "no version that is spoken here",
    "line: version 0.9": "no version that is spoken here",
    "line: HTTP/2": "no version that is spoken here",
    "field: name with b'_'": "a CGI-like peer reads _ as -",
    "field: escape in a value": "a control character",
    "field: delete in a value": "a control character",
    "size: head of 40 kB": "a limit of ours",
    "size: 101 fields": "a limit of ours",
    "size: a target of 9 kB": "a limit of ours",
    "encoding": "RFC 9110 8.4: 415 for a coding that is not acceptable",
    "expectation": "RFC 9110 10.1.1 allows 417",
}


def _post(body: bytes, **headers: str) -> Read:
    return Read("POST", "/", {"host": "a", **{k.replace("_", "-"): v for k, v in headers.items()}}, body)


def _get(target: str, **headers: str) -> Read:
    return Read("GET", target, {"host": "a", **headers}, b"")


def _targets(*targets: str) -> dict[str, tuple[bytes, list[Read]]]:
    """Passed on as they stand: nothing here normalises a path, so nothing reads one differently."""
    return {
        f"target {target}": (f"GET {target} HTTP/1.1\r\nhost: a\r\n\r\n".encode(), [_get(target)]) for target in targets
    }


CODED = {"transfer_encoding": "chunked"}
TAKEN: dict[str, tuple[bytes, list[Read]]] = {
    **_targets("//v1/models", "/v1//models", "/%2e%2e/x", "/v1/../x", "/v1/%6dodels"),
    **_targets("/a?b=c?d=/", "/;a=b", "/V1/MODELS"),
    "chunk: extension": (CHUNKED + b"3;a=b\r\nabc\r\n0\r\n\r\n", [_post(b"abc", **CODED)]),
    "chunk: quoted extension": (CHUNKED + b'3;a="b;c"\r\nabc\r\n0\r\n\r\n', [_post(b"abc", **CODED)]),
    "chunk: zeros first": (CHUNKED + b"00003\r\nabc\r\n000\r\n\r\n", [_post(b"abc", **CODED)]),
    "chunk: both cases": (
        CHUNKED + b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", [_post(b"0123456789" * 2, **CODED)],
    ),
    "chunk: trailers": (CHUNKED + b"1\r\na\r\n0\r\nt: u\r\n\r\n", [_post(b"a", **CODED)]),
    "coding: upper case": (
        POST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n1\r\na\r\n0\r\n\r\n", [_post(b"a", **CODED)],
    ),
    "length: zeros first": (POST + b"Content-Length: 003\r\n\r\nabc", [_post(b"abc", content_length="003")]),
    "length: a body that looks like a request": (
        POST + b"Content-Length: 29\r\n\r\n" + GOOD, [_post(GOOD, content_length="29")],
    ),
    "field: obs-text and tabs": (GET + b"x:\t a\tb \xe9 \r\n\r\n", [_get("/", x="a\tb \xe9")]),
    "field: empty": (GET + b"x:\r\n\r\n", [_get("/", x="")]),
    "field: given twice": (GET + b"x: 1\r\nX: 2\r\n\r\n", [_get("/", x="1, 2")]),
    "garbage after close": (GET + b"connection: close\r\n\r\nGARBAGE\r\n\r\n", [_get("/", connection="close")]),
    "HTTP/1.0 without a host": (b"GET / HTTP/1.0\r\n\r\n", [Read("GET", "/", {}, b"")]),
    "a pipeline": (GOOD + GOOD, [_get("/ok"), _get("/ok")]),
}  # fmt: skip
