"""Whatever is sent to the gateway, it answers with a status of its table and never with a 500."""

import asyncio
import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.fake_worker import answer
from support.gateways import chat_body, stage

SCALARS = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats(allow_nan=False) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
NAMES = st.sampled_from(
    [
        *(
            "model",
            "messages",
            "prompt",
            "max_tokens",
            "n",
            "seed",
            "stop",
            "stream",
            "logit_bias",
            "chat_template_kwargs",
        ),
        *("min_tokens", "cache_salt", "stream_options", "top_logprobs", "logprobs", "temperature", "tools", "x"),
    ]
)
BODIES = st.dictionaries(NAMES, VALUES, max_size=3).map(lambda fields: json.dumps(chat_body("hi", **fields)).encode())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(BODIES | st.binary(max_size=60), min_size=30, max_size=30), st.sampled_from(["chat/", ""]))
def test_any_body_is_answered_within_the_table(tmp_path: Path, bodies: list[bytes], kind: str) -> None:
    async def run() -> None:
        async with stage(tmp_path) as s:
            s.worker("d0").behave = answer("x")
            for body in bodies:
                got = await s.post(f"/v1/{kind}completions", body)
                assert got.status in (200, 400, 404), (got, body)
                if got.status != 200:
                    shape: Any = json.loads(got.body)["error"]
                    assert shape.keys() == {"message", "type", "param", "code"}

    asyncio.run(run())
