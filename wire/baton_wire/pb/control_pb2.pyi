from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DrainRequest(_message.Message):
    __slots__ = ("budget_s",)
    BUDGET_S_FIELD_NUMBER: _ClassVar[int]
    budget_s: float
    def __init__(self, budget_s: _Optional[float] = ...) -> None: ...

class DrainReply(_message.Message):
    __slots__ = ("left",)
    LEFT_FIELD_NUMBER: _ClassVar[int]
    left: int
    def __init__(self, left: _Optional[int] = ...) -> None: ...

class WatchKvEventsRequest(_message.Message):
    __slots__ = ("after_sequence",)
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    after_sequence: int
    def __init__(self, after_sequence: _Optional[int] = ...) -> None: ...

class KvEventBatch(_message.Message):
    __slots__ = ("epoch", "sequence", "snapshot", "events")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    sequence: int
    snapshot: bool
    events: _containers.RepeatedCompositeFieldContainer[KvEvent]
    def __init__(self, epoch: _Optional[str] = ..., sequence: _Optional[int] = ..., snapshot: _Optional[bool] = ..., events: _Optional[_Iterable[_Union[KvEvent, _Mapping]]] = ...) -> None: ...

class KvEvent(_message.Message):
    __slots__ = ("stored", "removed", "cleared")
    class Stored(_message.Message):
        __slots__ = ("keys", "parent")
        KEYS_FIELD_NUMBER: _ClassVar[int]
        PARENT_FIELD_NUMBER: _ClassVar[int]
        keys: _containers.RepeatedScalarFieldContainer[bytes]
        parent: bytes
        def __init__(self, keys: _Optional[_Iterable[bytes]] = ..., parent: _Optional[bytes] = ...) -> None: ...
    class Removed(_message.Message):
        __slots__ = ("keys",)
        KEYS_FIELD_NUMBER: _ClassVar[int]
        keys: _containers.RepeatedScalarFieldContainer[bytes]
        def __init__(self, keys: _Optional[_Iterable[bytes]] = ...) -> None: ...
    class Cleared(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    stored: KvEvent.Stored
    removed: KvEvent.Removed
    cleared: KvEvent.Cleared
    def __init__(self, stored: _Optional[_Union[KvEvent.Stored, _Mapping]] = ..., removed: _Optional[_Union[KvEvent.Removed, _Mapping]] = ..., cleared: _Optional[_Union[KvEvent.Cleared, _Mapping]] = ...) -> None: ...

class FromDecode(_message.Message):
    __slots__ = ("hello", "open", "posted", "ack", "abort", "heartbeat", "keep")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    POSTED_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    open: Open
    posted: Posted
    ack: Ack
    abort: Abort
    heartbeat: Heartbeat
    keep: Keep
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., posted: _Optional[_Union[Posted, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., abort: _Optional[_Union[Abort, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., keep: _Optional[_Union[Keep, _Mapping]] = ...) -> None: ...

class FromPrefill(_message.Message):
    __slots__ = ("welcome", "offer", "finish", "refused", "heartbeat")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    offer: Offer
    finish: Finish
    refused: Refused
    heartbeat: Heartbeat
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("decode_id", "decode_epoch", "fingerprint", "transports")
    DECODE_ID_FIELD_NUMBER: _ClassVar[int]
    DECODE_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TRANSPORTS_FIELD_NUMBER: _ClassVar[int]
    decode_id: str
    decode_epoch: str
    fingerprint: str
    transports: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, decode_id: _Optional[str] = ..., decode_epoch: _Optional[str] = ..., fingerprint: _Optional[str] = ..., transports: _Optional[_Iterable[str]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("prefill_id", "prefill_epoch", "fingerprint", "transport", "data_address", "link_token")
    PREFILL_ID_FIELD_NUMBER: _ClassVar[int]
    PREFILL_EPOCH_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    DATA_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LINK_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefill_id: str
    prefill_epoch: str
    fingerprint: str
    transport: str
    data_address: str
    link_token: bytes
    def __init__(self, prefill_id: _Optional[str] = ..., prefill_epoch: _Optional[str] = ..., fingerprint: _Optional[str] = ..., transport: _Optional[str] = ..., data_address: _Optional[str] = ..., link_token: _Optional[bytes] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("transfer_id", "ticket", "held_blocks")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    HELD_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    ticket: str
    held_blocks: int
    def __init__(self, transfer_id: _Optional[str] = ..., ticket: _Optional[str] = ..., held_blocks: _Optional[int] = ...) -> None: ...

class Keep(_message.Message):
    __slots__ = ("transfer_id", "ticket")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    ticket: str
    def __init__(self, transfer_id: _Optional[str] = ..., ticket: _Optional[str] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("transfer_id", "first_ordinal", "checksums")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_ORDINAL_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    first_ordinal: int
    checksums: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transfer_id: _Optional[str] = ..., first_ordinal: _Optional[int] = ..., checksums: _Optional[_Iterable[int]] = ...) -> None: ...

class Posted(_message.Message):
    __slots__ = ("transfer_id", "first_ordinal", "count", "first_tag")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_ORDINAL_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    FIRST_TAG_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    first_ordinal: int
    count: int
    first_tag: int
    def __init__(self, transfer_id: _Optional[str] = ..., first_ordinal: _Optional[int] = ..., count: _Optional[int] = ..., first_tag: _Optional[int] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("transfer_id", "total_blocks", "first", "queue_s", "compute_s", "chunks", "cached_tokens")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    CHUNKS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    total_blocks: int
    first: _containers.RepeatedCompositeFieldContainer[Sampled]
    queue_s: float
    compute_s: float
    chunks: int
    cached_tokens: int
    def __init__(self, transfer_id: _Optional[str] = ..., total_blocks: _Optional[int] = ..., first: _Optional[_Iterable[_Union[Sampled, _Mapping]]] = ..., queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., chunks: _Optional[int] = ..., cached_tokens: _Optional[int] = ...) -> None: ...

class Sampled(_message.Message):
    __slots__ = ("token_id", "logprob", "top_ids", "top_logprobs")
    TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    token_id: int
    logprob: float
    top_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, token_id: _Optional[int] = ..., logprob: _Optional[float] = ..., top_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("transfer_id",)
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    def __init__(self, transfer_id: _Optional[str] = ...) -> None: ...

class Abort(_message.Message):
    __slots__ = ("transfer_id", "reason")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    reason: str
    def __init__(self, transfer_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("transfer_id", "reason", "message", "code")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    reason: str
    message: str
    code: str
    def __init__(self, transfer_id: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., code: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
