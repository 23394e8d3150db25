"""What the `baton` command shows: progress, topology, where time went. Bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from .client import Answered
from .compose import Process
from .rundir import Running
from .status import Row
from .supervision import Phase, State
from .supervisor import Progress


class View:
    """Shows one deployment."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or plain_console()
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._phases: dict[str, tuple[Phase, int]] = {}
        self._stopping = False

    def notice(self, text: str) -> None:
        self.console.print(f"[yellow]note[/]: {escape(text)}")

    def processes(self, processes: Iterable[Process]) -> None:
        """Begins the bars."""
        if not self.console.is_terminal:
            return
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[what]}"), TimeElapsedColumn()
        self._bars = Bars(*columns, console=self.console, transient=True)
        for process in processes:
            self._tasks[process.name] = self._bars.add_task(process.name, total=None, what="waiting")
        self._bars.start()

    def on_progress(self, progress: Progress) -> None:
        if self._bars is not None:
            total = progress.total or None
            self._bars.update(self._tasks[progress.name], completed=progress.done, total=total, what=progress.what)

    def on_change(self, state: State) -> None:
        if state.stopping and not self._stopping:
            self._stopping = True
            self.console.print("stopping: the gateway finishes its requests, then the workers end")
        for child in state.children:
            before, now = self._phases.get(child.name), (child.phase, child.restarts)
            self._phases[child.name] = now
            if before == now:
                continue
            if self._bars is not None:
                full = 1 if child.phase is Phase.READY else None
                self._bars.update(self._tasks[child.name], what=child.phase.value, completed=full, total=full)
            if child.phase is Phase.WAITING and child.restarts:
                self.console.print(f"[red]{child.name}[/] ended and is started again (restart {child.restarts})")
            elif self._bars is None and child.phase in (Phase.STARTING, Phase.READY):
                self.console.print(f"{child.name}: {child.phase.value}")

    def end_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def endpoint(self, url: str, key: str, model: str) -> None:
        """What a user needs next."""
        body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "What is a KV ticket?"}}]}}'
        self.console.print(f"\n[bold green]Ready[/]: {url}/v1   model [bold]{escape(model)}[/]\nAPI key: {key}\n")
        self.console.print(
            f"curl {url}/v1/chat/completions -H 'Authorization: Bearer {key}' \\\n"
            f"  -H 'Content-Type: application/json' -d '{escape(body)}'\n",
            soft_wrap=True,
        )
        self.console.print("baton chat | baton status | Ctrl-C stops, twice at once")

    def topology(self, running: Running, rows: Iterable[Row]) -> None:
        """Who talks to whom."""
        self.console.print("\n[bold]topology[/]   client -> gateway -> prefill and decode;  KV: prefill -> decode")
        self.console.print(f"  gateway    {running.url}  model {escape(running.model)}")
        for info, url in ((row.info, row.state.url) for row in rows if row.info is not None):
            kv = f"{info.load.total_blocks} KV blocks of {info.block_tokens} tokens over {info.kv_transport}"
            self.console.print(f"  {info.worker_id:10} {url}  epoch {info.epoch}  {kv}")

    def question(self, question: str, about: str) -> None:
        self.console.print(f"\n[dim]--- {escape(about)}[/]\n[bold cyan]you[/]   {escape(question)}")
        self.console.print("[bold green]model[/] ", end="")

    def failure(self, why: str, tails: Iterable[tuple[str, str]]) -> None:
        """Why nothing runs, with the ends of the logs."""
        self.console.print(f"[bold red]failed[/]: {escape(why)}")
        for name, tail in tails:
            if tail.strip():
                self.console.print(f"[bold]--- log of {name}[/]\n{escape(tail.rstrip())}")

    def piece(self, text: str) -> None:
        """A piece of an answer, as it comes."""
        self.console.out(text, end="", highlight=False)
        self.console.file.flush()

    def timing(self, answered: Answered) -> None:
        """The exact split of one answer's time to first token, as the server measured it, beside the client's own."""
        self.console.print("\n")
        table = Table(box=None, pad_edge=False)
        table.add_column("time to first token")
        table.add_column("ms", justify="right")
        table.add_column("")
        for span in answered.spans:
            table.add_row(escape(span.name), f"{span.duration_s * 1e3:.3f}", escape(span.desc))
        inside_s = sum(span.duration_s for span in answered.spans)
        table.add_section()
        table.add_row("server", f"{inside_s * 1e3:.3f}", "the sum of these")
        if answered.ttft_s is not None:
            table.add_row("client", f"{(answered.ttft_s - inside_s) * 1e3:.3f}", "connection, way there and back")
            table.add_row("[bold]TTFT[/]", f"[bold]{answered.ttft_s * 1e3:.3f}[/]", "as this client measured it")
        self.console.print(table)
        self.console.print(
            f"{answered.prompt_tokens} prompt tokens, {answered.cached_tokens} from the prefix cache; "
            f"{answered.completion_tokens} tokens answered, {answered.total_s:.2f} s in all"
        )


def plain_console() -> Console:
    """Colours and the terminal's width on a terminal; elsewhere plain text that is never cut."""
    return Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def complain(message: str) -> None:
    """An error, on stderr."""
    print(f"error: {message}", file=sys.stderr)
