"""The command's client, its conversation and its status, against a real HTTP server that answers as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from baton_api.blocks import derive_key
from baton_api.errors import BatonError, SettingError, WorkerProtocolError
from baton_api.openai_out import AnswerMeta, chat_chunk, chat_role_chunk, usage, usage_chunk
from baton_api.timing import Span, to_server_timing
from baton_api.worker import Role, WorkerInfo, WorkerLoad
from baton_cli import status
from baton_cli.chat import chat, endpoint_of, given_endpoint, pipe
from baton_cli.client import Answered, Endpoint, Message, ask
from baton_cli.rundir import RunDir, Running, WorkerState
from baton_cli.view import View
from baton_wire.http_client import HttpClient
from baton_wire.http_server import Exchange, HttpServer, serve
from baton_wire.sse import format_event
from support.loops import LoopThread

META = AnswerMeta("chatcmpl-1", 1, "m")
SPANS = (Span("queue", 0.001), Span("transfer", 0.002, "4096 B tcp"))


def events(*pieces: str) -> list[bytes]:
    """A whole streamed answer."""
    chunks = [chat_role_chunk(META, 0), *(chat_chunk(META, 0, piece) for piece in pieces)]
    chunks += [chat_chunk(META, 0, "", finish_reason="stop"), usage_chunk(META, usage(9, len(pieces), 4), chat=True)]
    return [*(format_event(json.dumps(chunk).encode()) for chunk in chunks), format_event(b"[DONE]")]


class Scripted:
    """Answers each request with the next of its scripts, and keeps what it was asked. None in a script: no more comes
    until the client has gone."""

    def __init__(self, *scripts: list[bytes] | list[bytes | None] | BatonError) -> None:
        self.scripts = list(scripts)
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []

    async def handle(self, exchange: Exchange) -> None:
        self.asked.append(json.loads(exchange.body))
        self.keys.append(exchange.headers.get("authorization", ""))
        script = self.scripts.pop(0)
        if isinstance(script, BatonError):
            raise script
        exchange.start(200, [("content-type", "text/event-stream"), ("server-timing", to_server_timing(SPANS))])
        for event in script:
            if event is None:
                gone = asyncio.Event()
                exchange.on_gone(gone.set)
                await gone.wait()
                return
            exchange.write(event)
        exchange.end()


@contextlib.asynccontextmanager
async def served(scripted: Scripted) -> AsyncIterator[Endpoint]:
    server = await serve(scripted.handle, "127.0.0.1", 0)
    try:
        yield Endpoint(f"http://127.0.0.1:{server.port}", "sk-1", "m")
    finally:
        await server.close()


async def asked(scripted: Scripted, on_text: Callable[[str], None] = lambda _: None) -> Answered:
    async with served(scripted) as endpoint:
        http = HttpClient()
        try:
            return await ask(http, endpoint, [Message("user", "hi")], on_text, temperature=0.0)
        finally:
            await http.close()


async def test_text_comes_as_it_is_written_and_the_answer_is_whole() -> None:
    pieces: list[str] = []
    scripted = Scripted(events("Hel", "lo", " you"))
    answered = await asked(scripted, pieces.append)
    assert pieces == ["Hel", "lo", " you"]
    assert (answered.text, answered.finish_reason) == ("Hello you", "stop")
    assert (answered.prompt_tokens, answered.cached_tokens, answered.completion_tokens) == (9, 4, 3)
    assert answered.ttft_s is not None and 0 < answered.ttft_s <= answered.total_s
    assert scripted.keys == ["Bearer sk-1"]
    assert scripted.asked[0]["temperature"] == 0.0 and scripted.asked[0]["stream"] is True


async def test_the_split_of_the_server_is_read_from_its_header() -> None:
    assert (await asked(Scripted(events("a")))).spans == SPANS


async def test_an_answer_without_text_has_no_time_to_first_token() -> None:
    answered = await asked(Scripted(events()))
    assert (answered.text, answered.ttft_s) == ("", None)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (WorkerProtocolError("decode is gone"), "HTTP 502: decode is gone"),
        (events("a")[:-1], "broke off"),
        ([*events("a")[:2], format_event(b'{"error": {"message": "lost it", "code": "x"}}')], "lost it"),
        ([format_event(b"not JSON")], "is not a chat completion stream"),
        ([format_event(b"[]")], "is not a chat completion stream"),
        ([format_event(b'{"choices": [{}]}')], "is not a chat completion stream"),
    ],
)
async def test_a_bad_answer_is_an_error_that_says_what_is_wrong(script: Any, words: str) -> None:
    with pytest.raises(BatonError, match=words):
        await asked(Scripted(script))


def shown(answered: Answered) -> str:
    out = io.StringIO()
    View(Console(file=out, width=120)).timing(answered)
    return out.getvalue()


def test_the_rows_of_the_split_add_up_to_what_the_client_measured() -> None:
    lines = shown(Answered("hi", "stop", 0.0105, 0.02, SPANS, 9, 4, 1)).splitlines()
    rows = {words[0]: float(words[1]) for words in map(str.split, lines) if len(words) > 1 and "." in words[1]}
    assert rows["queue"] + rows["transfer"] == rows["server"] == 3.0
    assert rows["server"] + rows["client"] == rows["TTFT"] == 10.5
    assert any("4096 B tcp" in line for line in lines)


def test_a_span_is_shown_as_it_is_written_even_when_it_looks_like_markup() -> None:
    assert "[bold]x" in shown(Answered("", None, None, 0.1, (Span("a", 0.001, "[bold]x"),), 1, 0, 0))


@pytest.fixture
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


class Terminal(io.StringIO):
    """Presses Ctrl-C when it is shown STOP."""

    def write(self, text: str) -> int:
        if "STOP" in text:
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def conversation(loop_thread: LoopThread, scripted: Scripted, said: Sequence[str]) -> str:
    """What the terminal shows of a chat in which the user says that and then leaves."""
    server: HttpServer = loop_thread.run(serve(scripted.handle, "127.0.0.1", 0))
    lines = iter(said)

    def read(_: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    out = Terminal()
    try:
        endpoint = Endpoint(f"http://127.0.0.1:{server.port}", "sk-1", "m")
        assert chat(endpoint, Console(file=out, width=120), read) == 0
    finally:
        loop_thread.run(server.close())
    return out.getvalue()


def test_a_chat_remembers_what_was_said(loop_thread: LoopThread) -> None:
    scripted = Scripted(events("Hello"), events("Fine"))
    text = conversation(loop_thread, scripted, ["hi", "  ", "how are you?"])
    assert "Hello" in text and "Fine" in text
    assert [message["content"] for message in scripted.asked[1]["messages"]] == ["hi", "Hello", "how are you?"]


def test_a_refused_answer_is_shown_and_forgotten(loop_thread: LoopThread) -> None:
    scripted = Scripted(events("Hello"), WorkerProtocolError("no such luck"), events("Fine"))
    text = conversation(loop_thread, scripted, ["hi", "again", "how are you?"])
    assert "no such luck" in text
    assert [message["content"] for message in scripted.asked[2]["messages"]] == ["hi", "Hello", "how are you?"]


def test_an_answer_given_up_is_forgotten_and_the_chat_goes_on(loop_thread: LoopThread) -> None:
    scripted = Scripted(events("Hello"), [*events("on and", "STOP")[:3], None], events("Fine"))
    text = conversation(loop_thread, scripted, ["hi", "talk", "how are you?"])
    assert "(given up)" in text
    assert [message["content"] for message in scripted.asked[2]["messages"]] == ["hi", "Hello", "how are you?"]


@pytest.mark.parametrize(
    ("scripts", "code", "out", "err"),
    [
        ((events("Hello"), events("Fine")), 0, "Hello\nFine\n", ""),
        ((), 1, "\n", "error: cannot connect"),
        ((WorkerProtocolError("no such luck"), events("Fine")), 1, "\n", "error: HTTP 502: no such luck\n"),
        ((events("Hello"), events("Fi", "ne")[:2]), 1, "Hello\nFi\n", "error: the answer broke off\n"),
    ],
)
def test_of_a_pipe_each_line_is_answered_or_the_exit_code_and_stderr_say_that_one_was_not(
    loop_thread: LoopThread, capsys: pytest.CaptureFixture[str], scripts: Any, code: int, out: str, err: str
) -> None:
    server: HttpServer = loop_thread.run(serve(Scripted(*scripts).handle, "127.0.0.1", 0))
    endpoint = Endpoint(f"http://127.0.0.1:{server.port}", "sk-1", "m")
    if not scripts:
        loop_thread.run(server.close())
    shown = io.StringIO()
    try:
        assert pipe(endpoint, Console(file=shown, width=120), ["hi\n", "  \n", "how are you?\n"]) == code
    finally:
        if scripts:
            loop_thread.run(server.close())
    told = capsys.readouterr().err
    assert (shown.getvalue(), told[: len(err)]) == (out, err)
    assert bool(told) == bool(err)


def test_piped_bytes_that_are_no_text_are_named() -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"hi \xff\n"), encoding="utf-8")
    with pytest.raises(SettingError, match=r"input: b'\\xff' is not UTF-8"):
        pipe(Endpoint("http://127.0.0.1:1", "", "m"), Console(file=io.StringIO()), lines)


def test_a_given_endpoint_may_or_may_not_end_in_v1() -> None:
    assert given_endpoint("http://h:1/v1", "m").url == given_endpoint("http://h:1", "m").url == "http://h:1"
    with pytest.raises(SettingError, match="--model"):
        given_endpoint("http://h:1", None)
    with pytest.raises(SettingError, match="give http://HOST:PORT"):
        given_endpoint("zz://h", "m")


LOAD = WorkerLoad(running=2, waiting=3, kv_usage=0.5, total_blocks=8, free_blocks=3)
INFO = WorkerInfo(
    "decode-0", Role.DECODE, "e1", "m", "1", "f", "127.0.0.1:1", "tcp", 16, 128, True, False, LOAD
)  # fmt: skip


async def look(run_dir: RunDir, url: str | None) -> tuple[Running, tuple[status.Row, ...]]:
    worker = WorkerState("decode-0", "decode", "ready", 1, 42, url, "e1")
    front = WorkerState("gateway", "gateway", "ready", 0, 43, "http://127.0.0.1:9")
    with run_dir.held():
        run_dir.make_secrets("sk-1")
        run_dir.write_state(Running("demo", "m", 1, front.url, (worker, front)))
        server = await serve(worker_face(run_dir), "127.0.0.1", 0)
        try:
            at = f"http://127.0.0.1:{server.port}" if url is None else url
            states = (WorkerState("decode-0", "decode", "ready", 1, 42, at, "e1"), front)
            run_dir.write_state(Running("demo", "m", 1, front.url, states))
            return await status.look(run_dir)
        finally:
            await server.close()


def worker_face(run_dir: RunDir) -> Callable[[Exchange], Any]:
    async def handle(exchange: Exchange) -> None:
        key = derive_key(run_dir.secret_file.read_bytes().strip(), "worker-http").hex()
        assert (exchange.path, exchange.headers["authorization"]) == ("/baton/v1/worker", f"Bearer {key}")
        exchange.respond(200, INFO.to_json())

    return handle


def rendered(running: Running, rows: tuple[status.Row, ...]) -> str:
    out = io.StringIO()
    Console(file=out, width=200).print(status.as_table(running, rows))
    return out.getvalue()


async def test_status_shows_what_each_worker_says_of_itself(tmp_path: Path) -> None:
    running, rows = await look(RunDir(tmp_path / "demo"), None)
    line = next(line for line in rendered(running, rows).splitlines() if line.startswith("decode-0"))
    assert line.split()[-6:] == ["e1", "tcp", "2", "3", "5/8", "1"]
    data = status.as_data(running, rows)
    assert data["children"][0]["info"]["load"]["running"] == 2
    assert json.loads(json.dumps(data)) == data


async def test_status_says_of_a_worker_that_it_does_not_answer(tmp_path: Path) -> None:
    running, rows = await look(RunDir(tmp_path / "demo"), "http://127.0.0.1:1")
    assert rows[0].info is None and rows[0].problem
    assert rows[0].problem in rendered(running, rows)


def test_a_chat_without_a_gateway_that_is_ready_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    run_dir = RunDir(tmp_path / "baton" / "demo")
    with run_dir.held():
        run_dir.make_secrets("sk-1")
        run_dir.write_state(Running("demo", "m", 1, None, ()))
        with pytest.raises(SettingError, match="no gateway that is ready"):
            endpoint_of(None)
        run_dir.write_state(Running("demo", "m", 1, "http://127.0.0.1:9", ()))
        assert endpoint_of("demo") == Endpoint("http://127.0.0.1:9", "sk-1", "m")


async def test_giving_an_answer_up_breaks_it_off_at_the_server() -> None:
    gone, begun = asyncio.Event(), asyncio.Event()

    async def handle(exchange: Exchange) -> None:
        exchange.on_gone(gone.set)
        exchange.start(200, [("content-type", "text/event-stream")])
        exchange.write(events("a")[0])
        begun.set()
        await gone.wait()

    server = await serve(handle, "127.0.0.1", 0)
    http = HttpClient()
    endpoint = Endpoint(f"http://127.0.0.1:{server.port}", "sk-1", "m")
    answer = asyncio.create_task(ask(http, endpoint, [Message("user", "hi")], lambda _: None))
    await begun.wait()
    answer.cancel()
    await asyncio.wait_for(gone.wait(), 5)
    with pytest.raises(asyncio.CancelledError):
        await answer
    await http.close()
    await server.close()
