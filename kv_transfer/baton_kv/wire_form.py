"""Nouns to protobuf messages and back. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from baton_api import errors
from baton_api.sampling import SampledToken
from baton_api.timing import PrefillTimeline
from baton_wire.pb import control_pb2 as pb

_BY_REASON: dict[str, type[errors.TransferError]] = {
    kind.reason: kind
    for kind in (
        errors.TicketRefused,
        errors.EpochMismatch,
        errors.LayoutMismatch,
        errors.ChecksumMismatch,
        errors.PeerLost,
        errors.TransferDeadline,
        errors.TransferAborted,
        errors.PrefillFailed,
    )
}


def refused(transfer_id: str, error: errors.BatonError) -> pb.FromPrefill:
    """`error` as the message that ends a transfer, or with an empty id the stream."""
    return pb.FromPrefill(
        refused=pb.Refused(
            transfer_id=transfer_id, reason=error.reason, message=error.message, code=error.code or error.reason
        )
    )


def refusal_error(message: pb.Refused) -> errors.TransferError:
    """The error that prefill named; an unknown reason (a newer peer) is a plain TransferError."""
    return transfer_error(message.reason, message.message, message.code)


def transfer_error(reason: str, message: str, code: str) -> errors.TransferError:
    """The error with this stable `reason`."""
    kind = _BY_REASON.get(reason, errors.TransferError)
    return kind(message or reason, code=code or None)


def finish_message(
    transfer_id: str, total_blocks: int, first: Sequence[SampledToken], timeline: PrefillTimeline
) -> pb.FromPrefill:
    return pb.FromPrefill(
        finish=pb.Finish(
            transfer_id=transfer_id,
            total_blocks=total_blocks,
            first=[_sampled(token) for token in first],
            queue_s=timeline.queue_s,
            compute_s=timeline.compute_s,
            chunks=timeline.chunks,
            cached_tokens=timeline.cached_tokens,
        )
    )


def _sampled(token: SampledToken) -> pb.Sampled:
    return pb.Sampled(
        token_id=token.token_id,
        logprob=token.logprob,
        top_ids=[token_id for token_id, _ in token.top],
        top_logprobs=[logprob for _, logprob in token.top],
    )


def first_tokens(message: pb.Finish) -> tuple[SampledToken, ...]:
    return tuple(
        SampledToken(
            token_id=token.token_id,
            logprob=token.logprob if token.HasField("logprob") else None,
            top=tuple(zip(token.top_ids, token.top_logprobs, strict=True)),
        )
        for token in message.first
    )


def prefill_timeline(message: pb.Finish) -> PrefillTimeline:
    return PrefillTimeline(
        queue_s=message.queue_s,
        compute_s=message.compute_s,
        chunks=message.chunks,
        cached_tokens=message.cached_tokens,
    )
