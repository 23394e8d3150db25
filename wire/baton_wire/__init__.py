"""HTTP/1.1 server and client on httptools, SSE, gRPC stubs generated from wire/proto."""
