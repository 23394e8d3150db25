"""List and watch against an API server that fails in every way it can; the mirror only ever changes by what it says."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from baton_api.errors import KubernetesError, SettingError
from baton_wire.http_pool import ClientTls
from baton_wire.http_server import Exchange
from baton_wire.kube_access import KubeAccess, in_cluster
from baton_wire.kube_api import LIST_METADATA, WATCH_METADATA, Event, KubeApi
from baton_wire.kube_watch import Backoff, Mirror, Reflector, Wanted, WatchTimes
from support.control_plane import NEW_KEY
from support.fake_watch import Asked, FakeApi
from support.gateways import until

PATH = "/api/v1/namespaces/ns/pods"
LABELS = {"app": "a"}
QUICK = WatchTimes(request_s=1.0, server_s=60.0, silence_s=30.0, wait_base_s=0.02, wait_max_s=0.1)


def pod(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {**LABELS, **labels}}}


@dataclass
class Reflected:
    api: FakeApi
    mirror: Mirror[str]
    errors: list[str] = field(default_factory=list)

    @property
    def lists(self) -> list[Asked]:
        return [asked for asked in self.api.asked if not asked.is_watch]

    @property
    def watches(self) -> list[Asked]:
        return [asked for asked in self.api.asked if asked.is_watch]

    async def holds(self, *names: str) -> None:
        await until(lambda: set(self.mirror.items) == set(names))

    async def watched(self, count: int = 1) -> None:
        """Until so many watches were opened, the last of which is open."""
        await until(lambda: len(self.watches) >= count and bool(self.api.watching))


@asynccontextmanager
async def reflected(times: WatchTimes = QUICK, *, names: str = "ab", start: bool = True) -> AsyncIterator[Reflected]:
    api = FakeApi()
    for name in names:
        api.put(PATH, pod(name))
    await api.start()
    if not start:
        await api.stop()
    mirror: Mirror[str] = Mirror(lambda item: item["metadata"]["labels"].get("mark", "plain"), lambda: None)
    view = Reflected(api, mirror)
    client = KubeApi(api.access)
    wanted = Wanted("Pods", PATH, {"labelSelector": "app=a"}, metadata_only=True)
    task = asyncio.create_task(Reflector(client, wanted, mirror, times, lambda: 0.5, view.errors.append).run())
    try:
        yield view
        assert not task.done(), "a reflector never ends by itself"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()
        await api.stop()


async def test_a_mirror_follows_what_is_added_changed_and_deleted() -> None:
    async with reflected() as view:
        await view.holds("a", "b")
        await view.watched()
        view.api.put(PATH, pod("c"))
        view.api.put(PATH, {"metadata": {"name": "other", "labels": {"app": "b"}}})
        view.api.delete(PATH, "a")
        view.api.put(PATH, pod("b", mark="new"))
        await until(lambda: view.mirror.items == {"b": "new", "c": "plain"})
    assert view.errors == [] and len(view.lists) == len(view.watches) == 1
    assert (view.lists[0].accept, view.watches[0].accept) == (LIST_METADATA, WATCH_METADATA)
    assert view.watches[0].query["allowWatchBookmarks"] == "true" and "timeoutSeconds" in view.watches[0].query


def test_only_what_changes_what_is_kept_is_a_change() -> None:
    changes: list[dict[str, str]] = []
    mirror: Mirror[str] = Mirror(lambda item: item["metadata"].get("mark"), lambda: changes.append(dict(mirror.items)))

    def happen(kind: str, name: str, mark: str | None = None) -> None:
        mirror.apply(Event(kind, {"metadata": {"name": name, **({"mark": mark} if mark else {})}}))

    happen("ADDED", "a", "1")
    happen("MODIFIED", "a", "1")
    happen("BOOKMARK", "a", "2")
    happen("ADDED", "b")
    happen("DELETED", "c")
    assert changes == [{"a": "1"}]
    happen("MODIFIED", "a", "2")
    happen("MODIFIED", "a")
    happen("ADDED", "a", "1")
    happen("DELETED", "a", "1")
    assert changes == [{"a": "1"}, {"a": "2"}, {}, {"a": "1"}, {}]


async def test_a_long_list_comes_in_pages() -> None:
    async with reflected(start=False, names="abcdefg") as view:
        view.api.page_items = 3
        await view.api.start()
        await view.holds(*"abcdefg")
    assert [asked.query.get("continue") for asked in view.lists[-3:]] == [None, "3", "6"]


@pytest.mark.parametrize("how", [Exchange.end, Exchange.abort])
async def test_after_an_ended_or_broken_watch_it_goes_on_from_the_last_version(how: Any) -> None:
    async with reflected() as view:
        await view.watched()
        view.api.put(PATH, pod("c"))
        await view.holds(*"abc")
        view.api.end_watches(how)
        view.api.put(PATH, pod("d"))  # while nobody watches
        await view.holds(*"abcd")
    assert len(view.lists) == 1, "no need to list again"


async def test_a_bookmark_moves_the_version_on() -> None:
    async with reflected() as view:
        await view.watched()
        view.api.bookmark()
        before = view.watches[-1].query["resourceVersion"]
        await asyncio.sleep(0.05)
        view.api.end_watches()
        await view.watched(2)
        assert int(view.watches[-1].query["resourceVersion"]) > int(before)
        await view.holds("a", "b")


@pytest.mark.parametrize("after_head", [False, True])
async def test_a_version_that_is_gone_means_listing_again(after_head: bool) -> None:
    async with reflected() as view:
        await view.watched()
        if after_head:
            view.api.error_event(410)
        else:
            view.api.compact()
            view.api.end_watches(Exchange.abort)
        view.api.put(PATH, pod("c"))
        await view.holds(*"abc")
        await until(lambda: len(view.lists) == 2)
    assert "Expired" in view.errors


async def test_a_server_that_always_says_410_is_not_pressed() -> None:
    async with reflected(replace(QUICK, wait_base_s=0.1, wait_max_s=0.2)) as view:
        view.api.refuse = lambda asked: (410, []) if asked.is_watch else None
        view.api.end_watches(Exchange.abort)
        await asyncio.sleep(0.6)
        assert len(view.lists) <= 10
        await view.holds("a", "b")


async def test_429_waits_as_long_as_asked() -> None:
    async with reflected() as view:
        await view.watched()
        view.api.refuse = lambda asked: (429, [("retry-after", "1")])
        view.api.end_watches(Exchange.abort)
        await until(lambda: len(view.watches) >= 2)
        view.api.refuse = lambda asked: None
        await until(lambda: len(view.watches) >= 3)
    refused, again = view.watches[1:3]
    assert again.at_s - refused.at_s >= 0.99 and view.errors[-1] == "Refused"


async def test_a_rotated_token_is_read_again() -> None:
    async with reflected() as view:
        await view.watched()
        view.api.token = "second"
        view.api.end_watches(Exchange.abort)
        await until(lambda: "Unauthorized" in view.errors)
        view.api.put(PATH, pod("c"))
        await view.holds("a", "b")
        view.api.client_token = lambda: "second"
        await view.holds(*"abc")


async def test_a_token_that_cannot_be_read_is_an_error_with_a_reason_not_the_end() -> None:
    def unreadable() -> str:
        raise OSError("no such file")

    async with reflected() as view:
        await view.watched()
        view.api.client_token = unreadable
        view.api.end_watches(Exchange.abort)
        await until(lambda: "no_token" in view.errors)
        view.api.client_token = lambda: "first"
        view.api.put(PATH, pod("c"))
        await view.holds(*"abc")


async def test_a_watch_that_is_silently_dead_is_found_out() -> None:
    async with reflected(replace(QUICK, silence_s=0.2)) as view:
        await view.watched()
        view.api.mute = True
        view.api.put(PATH, pod("c"))
        await until(lambda: "silent" in view.errors)
        view.api.mute = False
        await view.holds(*"abc")
    assert len(view.lists) == 1


async def test_an_outage_changes_nothing_and_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "baton.kubernetes"):
        async with reflected() as view:
            await view.watched()
            await view.api.stop()
            view.api.delete(PATH, "a")
            await until(lambda: len(view.errors) >= 5)
            assert set(view.mirror.items) == {"a", "b"}
            await view.api.start()
            await view.holds("b")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO"]
    assert "keeping what is known" in caplog.messages[1] and "heard of again" in caplog.messages[2]


async def test_in_an_outage_two_mirrors_ask_at_most_five_times_a_second() -> None:
    times = WatchTimes()
    backoffs = [Backoff(times.wait_base_s, times.wait_max_s, lambda: 0.0) for _ in range(2)]
    for backoff in backoffs:
        waits = [backoff.failed() for _ in range(200)]
        for first, second in itertools.pairwise(itertools.accumulate(waits)):
            assert second - first >= 0.4 and max(waits) <= times.wait_max_s
        backoff.succeeded()
        assert backoff.failed() == 0.4


async def test_an_api_server_that_comes_late_is_waited_for() -> None:
    async with reflected(start=False) as view:
        await until(lambda: len(view.errors) >= 2)
        assert not view.mirror.listed
        await view.api.start()
        await view.holds("a", "b")


@pytest.mark.parametrize("line", [b"not json\n", b"[]\n", b'{"type": "ADDED", "object": {}}\n', b'{"type": 7}\n'])
async def test_what_is_no_event_is_an_error_and_the_watch_starts_over(line: bytes) -> None:
    async with reflected() as view:
        await view.watched()
        view.api.watching[0].exchange.write(line)
        await until(lambda: "bad_answer" in view.errors)
        view.api.put(PATH, pod("c"))
        await view.holds(*"abc")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"kind": "Status", "code": 403, "reason": "Forbidden", "message": "user x cannot"}, "HTTP 403: user x cannot"),
        ({"kind": "PodList"}, "no list"),
    ],
)
async def test_a_refusal_says_what_the_server_said(answer: dict[str, Any], says: str) -> None:
    api = await FakeApi().start()
    client = KubeApi(api.access)
    api.answers[f"GET {PATH}"] = answer
    try:
        with pytest.raises(KubernetesError, match=says):
            await client.list(PATH)
    finally:
        await client.close()
        await api.stop()


async def test_outside_a_pod_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"KUBERNETES_SERVICE_HOST: '' is not set; run in a Pod"):
        in_cluster({})
    with pytest.raises(SettingError, match="automountServiceAccountToken"):
        in_cluster({"KUBERNETES_SERVICE_HOST": "10.96.0.1"}, str(tmp_path))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A folder with `crt` and `key` of api.example."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    names = ["-subj", "/CN=api", "-addext", "subjectAltName=DNS:api.example"]
    new = ["openssl", "req", "-x509", *NEW_KEY, "-keyout", "key", "-out", "crt", *names]
    subprocess.run(new, cwd=tmp_path, check=True, capture_output=True)
    return tmp_path


async def test_over_tls_the_server_must_be_who_it_should_be(certificate: Path) -> None:
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(certificate / "crt", certificate / "key")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=served)
    port = server.sockets[0].getsockname()[1]
    known = ssl.create_default_context(cafile=str(certificate / "crt"))
    async with server:
        assert await ask(port, ClientTls(known, "api.example")) == {}
        for tls, error in (
            (ClientTls(known), "certificate verify failed: IP address mismatch"),
            (ClientTls(known, "other.example"), "certificate verify failed: Hostname mismatch"),
            (ClientTls(ssl.create_default_context(), "api.example"), "certificate verify failed: self.signed"),
        ):
            with pytest.raises(KubernetesError, match=error):
                await ask(port, tls)


async def ask(port: int, tls: ClientTls) -> dict[str, Any]:
    client = KubeApi(KubeAccess("127.0.0.1", port, tls))
    try:
        return await client.call("GET", "/version")
    finally:
        await client.close()
