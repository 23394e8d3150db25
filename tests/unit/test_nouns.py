"""The nouns of baton_api: keys, layout, tickets, hand-off, settings."""

import json
import time
from dataclasses import dataclass, replace

import pytest

from baton_api.blocks import ROOT, block_keys, blocks_for, chain, prompt_digest, tenant_salt
from baton_api.errors import BadRequest, SettingError, TicketRefused, WorkerProtocolError
from baton_api.handoff import HandOff
from baton_api.layout import KvLayout
from baton_api.sampling import SamplingParams
from baton_api.settings import parse, setting
from baton_api.tickets import Ticket, sign_ticket, verify_ticket
from baton_api.timing import Span, from_server_timing, to_server_timing
from baton_api.worker import Role, WorkerInfo, WorkerLoad

SALT = tenant_salt(b"secret", "a")
LAYOUT = KvLayout("m", 2, 2, 32, 16, "float32", "layer,kv,token,head,dim")


def test_a_key_depends_on_every_token_before_it() -> None:
    tokens = list(range(48))
    keys = block_keys(tokens, 16, SALT)
    changed = block_keys([99, *tokens[1:]], 16, SALT)
    assert len(keys) == 3 and not set(keys) & set(changed)
    assert block_keys(tokens[:47], 16, SALT) == keys[:2]


def test_keys_of_two_tenants_never_meet() -> None:
    tokens = list(range(160))
    assert not set(block_keys(tokens, 16, SALT)) & set(block_keys(tokens, 16, tenant_salt(b"secret", "b")))


def test_a_prompt_digest_covers_the_partial_last_block() -> None:
    tokens = list(range(20))
    assert prompt_digest(tokens, 16, SALT) != prompt_digest(tokens[:19], 16, SALT)
    assert prompt_digest(tokens[:16], 16, SALT) == block_keys(tokens, 16, SALT)[0]
    assert [blocks_for(n, 16) for n in (1, 16, 17)] == [1, 1, 2]


def test_a_layout_knows_its_bytes_and_its_fingerprint() -> None:
    assert LAYOUT.block_bytes == 2 * 2 * 2 * 32 * 16 * 4
    assert LAYOUT.fingerprint != replace(LAYOUT, dtype="bfloat16").fingerprint
    with pytest.raises(SettingError, match=r"layout.dtype: 'int3' is unknown; use one of"):
        replace(LAYOUT, dtype="int3")


def ticket(**changes: object) -> Ticket:
    base = Ticket("t1", "p0", "e1", "127.0.0.1:1", "d0", LAYOUT.fingerprint, "ab", 7, time.time() + 10)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_a_ticket_survives_the_wire() -> None:
    assert verify_ticket(sign_ticket(ticket(), b"k"), b"k", time.time()).transfer_id == "t1"


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (sign_ticket(ticket(), b"other"), "ticket_forged"),
        (sign_ticket(ticket(expires_at_s=1.0), b"k"), "ticket_expired"),
        (sign_ticket(ticket(), b"k")[2:], "ticket_forged"),
        ("", "ticket_forged"),
        ("é.é", "ticket_malformed"),
        ("a" * 3000, "ticket_malformed"),
    ],
)
def test_a_bad_ticket_is_refused_with_its_reason(wire: str, code: str) -> None:
    with pytest.raises(TicketRefused) as caught:
        verify_ticket(wire, b"k", time.time())
    assert caught.value.code == code


def test_a_hand_off_survives_the_wire_and_refuses_another_dialect() -> None:
    hand_off = HandOff("decode", "t", SALT.hex(), 5.0, "ticket")
    assert HandOff.from_params(hand_off.to_params()) == hand_off
    for bad in ({"dialect": "kv_params"}, {}, [], None, {**hand_off.to_params(), "salt": "zz"}):
        with pytest.raises(BadRequest) as caught:
            HandOff.from_params(bad)
        assert caught.value.param == "kv_transfer_params"


def test_server_timing_survives_the_wire() -> None:
    spans = (Span("queue", 0.001), Span("transfer", 0.5, "12 B ucx/tcp"))
    assert from_server_timing(to_server_timing(spans)) == spans


def test_a_worker_description_survives_the_wire() -> None:
    info = WorkerInfo(
        "p0", Role.PREFILL, "e", "m", "r", "f", "h:1", "tcp", 16, 2048, True, False, WorkerLoad(1, 2, 0.5, 10, 5)
    )
    assert WorkerInfo.from_json(info.to_json()) == info


@pytest.mark.parametrize(
    "change",
    [
        {"role": "x"},
        {"block_tokens": 0},
        {"block_tokens": "16"},
        {"max_model_len": True},
        {"ready": 1},
        {"load": []},
        {"load": {"kv_usage": "nan"}},
        {"load": {"kv_usage": float("nan")}},
        {"load": {"running": 1.5}},
        {"epoch": None},
    ],
)
def test_a_worker_description_of_wrong_types_is_refused(change: dict[str, object]) -> None:
    info = WorkerInfo("p0", Role.PREFILL, "e", "m", "r", "f", "h:1", "tcp", 16, 2048, True, False)
    raw = {**json.loads(info.to_json()), "newer": 1}
    assert WorkerInfo.from_json(json.dumps(raw).encode()) == info
    with pytest.raises(WorkerProtocolError, match="malformed"):
        WorkerInfo.from_json(json.dumps({**raw, **change}).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 9),
        ("temperature", -0.1),
        ("repetition_penalty", 1e-39),
        ("top_p", 0.0),
        ("top_logprobs", 21),
        ("stop", ("",)),
        ("max_tokens", 0),
    ],
)
def test_a_sampling_value_outside_its_limits_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field


@dataclass(frozen=True)
class Inner:
    port: int = setting(0, "TCP port", low=0, high=65535)


@dataclass(frozen=True)
class Outer:
    name: str = setting(description="a name")
    inner: Inner = setting(factory=Inner)
    tags: tuple[str, ...] = ()
    ratio: float = setting(1.0, low=0)


def test_settings_parse_strictly_and_name_the_field() -> None:
    assert parse(Outer, {"name": "x", "inner": {"port": 1}, "tags": ["a"], "ratio": 2}) == Outer(
        "x", Inner(1), ("a",), 2.0
    )
    for raw, message in [
        ({}, "name: null is missing"),
        ({"name": 3}, "name: 3 is int"),
        ({"name": "x", "inner": {"port": 70000}}, "inner.port: 70000 is above 65535"),
        ({"name": "x", "extra": 1}, "extra: 1 is not a known field"),
        ({"name": "x", "ratio": True}, "ratio: true is bool"),
        ({"name": "x", "tags": "a"}, "tags: 'a' is not a list"),
    ]:
        with pytest.raises(SettingError, match=message):
            parse(Outer, raw)


def test_the_keys_of_a_prompt_are_a_chain_over_its_blocks() -> None:
    tokens, parent = list(range(40)), ROOT
    for key, start in zip(block_keys(tokens, 16, SALT), (0, 16), strict=True):
        parent = chain(parent, tokens[start : start + 16], SALT)
        assert key == parent
    assert prompt_digest(tokens, 16, SALT) == chain(parent, tokens[32:], SALT)
    assert block_keys([], 16, SALT) == () and prompt_digest([], 16, SALT) == ROOT
