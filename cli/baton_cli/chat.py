"""`baton chat`: a conversation in the terminal, streamed; Ctrl-C gives up the answer, Ctrl-D the conversation.

Of a pipe each line is a question; nothing but the answers is written, and the first that fails is the end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.markup import escape

from baton_api.errors import BatonError, SettingError
from baton_wire.http_client import HttpClient
from baton_wire.http_request import split_url

from .client import Answered, Endpoint, Message, ask
from .rundir import find
from .view import complain


def endpoint_of(name: str | None) -> Endpoint:
    """Of the deployment called `name`, or of the one that runs. Raises SettingError."""
    run_dir = find(name)
    running = run_dir.read_state()
    if running.url is None:
        raise SettingError("name", running.name, "has no gateway that is ready", "see `baton status`")
    return Endpoint(running.url, run_dir.api_key_file.read_text().strip(), running.model)


def given_endpoint(url: str, model: str | None) -> Endpoint:
    """Any OpenAI-compatible endpoint; the key comes from BATON_API_KEY. Raises SettingError."""
    if model is None:
        raise SettingError("--model", None, "is missing", "give the name of the model at --url")
    try:
        split_url(url)
    except ValueError as error:
        raise SettingError("--url", url, "is not a URL of http", "give http://HOST:PORT") from error
    return Endpoint(url.rstrip("/").removesuffix("/v1"), os.environ.get("BATON_API_KEY", ""), model)


async def answer(endpoint: Endpoint, messages: list[Message], on_text: Callable[[str], None]) -> Answered:
    """One answer over a connection of its own."""
    http = HttpClient()
    try:
        return await ask(http, endpoint, messages, on_text)
    finally:
        await http.close()


def shown_on(console: Console) -> Callable[[str], None]:
    def show(text: str) -> None:
        console.out(text, end="", highlight=False)
        console.file.flush()

    return show


def pipe(endpoint: Endpoint, console: Console, lines: Iterable[str]) -> int:
    """The exit code: 0 when every line was answered; 1 after the first that was not, which is told on stderr.

    Raises SettingError for lines that are no text.
    """
    said: list[Message] = []
    try:
        for question in filter(None, map(str.strip, lines)):
            asked = [*said, Message("user", question)]
            try:
                answered = asyncio.run(answer(endpoint, asked, shown_on(console)))
            finally:
                console.print()
            said = [*asked, Message("assistant", answered.text)]
    except UnicodeDecodeError as error:
        raise SettingError("input", error.object[error.start : error.end], "is not UTF-8", "give text") from error
    except BatonError as error:
        complain(error.message)
        return 1
    return 0


def chat(endpoint: Endpoint, console: Console, read: Callable[[str], str] = input) -> int:
    """Until `read` raises EOFError. What was refused, broke off or was given up leaves no trace in the conversation."""
    said: list[Message] = []
    console.print(f"{escape(endpoint.model)} at {endpoint.url}; Ctrl-C gives up an answer, Ctrl-D ends")
    while True:
        try:
            question = read("\n> " if console.is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return 0
        if not question:
            continue
        asked = [*said, Message("user", question)]
        try:
            answered = asyncio.run(answer(endpoint, asked, shown_on(console)))
        except KeyboardInterrupt:  # asyncio.run has cancelled the answer, which breaks it off at the server
            console.print("\n(given up)")
        except BatonError as error:
            console.print(f"\n[red]error[/]: {escape(error.message)}")
        else:
            said = [*asked, Message("assistant", answered.text)]
            console.print()
