"""The one tree of errors. Pure.

    BatonError                 knows its HTTP status, OpenAI error type and whether a retry helps
    +-- BadRequest             400, `param` named
    |   +-- ContextLengthExceeded
    +-- Unauthorized           401
    +-- Forbidden              403
    +-- NotFound               404
    +-- MethodNotAllowed       405
    +-- ClientTooSlow          408
    +-- TooLarge               413
    +-- UnsupportedEncoding    415
    +-- ExpectationFailed      417
    +-- HeadersTooLarge        431
    +-- Overloaded             429, Retry-After
    +-- InternalError          500
    +-- WorkerProtocolError    502
    |   +-- TransferError      the KV hand-off failed; another try or a local prefill helps
    |       +-- TicketRefused, EpochMismatch, LayoutMismatch, ChecksumMismatch,
    |           PeerLost, TransferDeadline, TransferAborted, PrefillFailed
    +-- NoCapacity             503, Retry-After
    +-- KubernetesError        502; the cluster's API refused, broke off or could not be reached
    +-- DeadlineExceeded       504
    +-- SettingError           a setting or resource field is wrong; stops the start

Errors from libraries are translated to this tree at the seam where they appear, and only there.
The body sent to a client is OpenAI's: {"error": {"message", "type", "param", "code"}}, all four keys always present.
"""

from __future__ import annotations

from typing import Any, ClassVar

from .shown import shown


class BatonError(Exception):
    """Root of the tree. `reason` is a stable machine-readable word for logs and metrics (invariant I10)."""

    http_status: ClassVar[int] = 500
    type: ClassVar[str] = "internal_error"
    reason: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The OpenAI error object."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code if self.code is not None else self.reason,
            }
        }


class BadRequest(BatonError):
    http_status = 400
    type = "invalid_request_error"
    reason = "invalid_value"


class ContextLengthExceeded(BadRequest):
    reason = "context_length_exceeded"


class Unauthorized(BatonError):
    http_status = 401
    type = "invalid_request_error"
    reason = "invalid_api_key"


class Forbidden(BatonError):
    http_status = 403
    type = "permission_error"
    reason = "forbidden"


class NotFound(BatonError):
    http_status = 404
    type = "invalid_request_error"
    reason = "not_found"


class MethodNotAllowed(BatonError):
    """`allow` lists the methods that the path takes, as the header of that name does (RFC 9110 section 15.5.6)."""

    http_status = 405
    type = "invalid_request_error"
    reason = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class ClientTooSlow(BatonError):
    http_status = 408
    type = "invalid_request_error"
    reason = "client_too_slow"


class TooLarge(BatonError):
    http_status = 413
    type = "invalid_request_error"
    reason = "request_too_large"


class UnsupportedEncoding(BatonError):
    http_status = 415
    type = "invalid_request_error"
    reason = "unsupported_content_encoding"


class ExpectationFailed(BatonError):
    http_status = 417
    type = "invalid_request_error"
    reason = "expectation_failed"


class HeadersTooLarge(BatonError):
    http_status = 431
    type = "invalid_request_error"
    reason = "headers_too_large"


class Overloaded(BatonError):
    http_status = 429
    type = "rate_limit_error"
    reason = "overloaded"
    retryable = True


class InternalError(BatonError):
    http_status = 500
    type = "internal_error"
    reason = "internal"


class WorkerProtocolError(BatonError):
    http_status = 502
    type = "server_error"
    reason = "worker_protocol"
    retryable = True


class NoCapacity(BatonError):
    http_status = 503
    type = "server_error"
    reason = "no_capacity"
    retryable = True


class DeadlineExceeded(BatonError):
    http_status = 504
    type = "server_error"
    reason = "deadline_exceeded"


class KubernetesError(BatonError):
    """`status` is the API server's HTTP status, 0 when there was no answer; `code` its reason ("Forbidden",
    "Expired") or ours ("unreachable", "bad_answer")."""

    http_status = 502
    type = "server_error"
    reason = "kubernetes_api"
    retryable = True

    def __init__(
        self, message: str, *, status: int = 0, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)
        self.status = status


class TransferError(WorkerProtocolError):
    """The KV hand-off of one transfer failed. After it is raised the transfer is terminal (invariant I5)."""

    reason = "transfer_failed"


class TicketRefused(TransferError):
    reason = "ticket_refused"


class EpochMismatch(TransferError):
    reason = "epoch_mismatch"


class LayoutMismatch(TransferError):
    reason = "layout_mismatch"


class ChecksumMismatch(TransferError):
    reason = "checksum_mismatch"


class PeerLost(TransferError):
    reason = "peer_lost"


class TransferDeadline(TransferError):
    reason = "transfer_deadline"


class TransferAborted(TransferError):
    reason = "transfer_aborted"


class PrefillFailed(TransferError):
    reason = "prefill_failed"


class SettingError(BatonError):
    """A setting or a resource field is wrong. The message names field, value, limit and fix."""

    http_status = 400
    type = "invalid_request_error"
    reason = "invalid_setting"

    def __init__(self, field: str, value: object, why: str, fix: str) -> None:
        super().__init__(f"{field}: {shown(value)} {why}; {fix}", param=field)
        self.field = field
        self.value = value
