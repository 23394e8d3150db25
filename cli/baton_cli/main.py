"""The `baton` command."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from baton_api.errors import BatonError

from . import chat as chatting
from . import demo as demonstration
from . import on_cluster
from . import status as looking
from .kube_config import Chosen
from .rundir import find, named
from .up import Changes, read_model
from .up import up as serve
from .view import View, complain, plain_console

app = cyclopts.App(name="baton", help="Disaggregated LLM serving: prefill and decode in separate pools.")
Output = Literal["table", "json"]
Transport = Literal["ucx", "ucx/tcp", "ucx/shm", "tcp", "cma"]
Context = Annotated[str | None, Parameter(help="context of the kubeconfig; default: its current one")]
Namespace = Annotated[
    str | None, Parameter(name=["--namespace", "-n"], help="namespace on the cluster; default: the context's")
]
Name = Annotated[str | None, Parameter(help="name of the deployment; default: the model's, or the one that runs")]


@app.command
def up(
    file: Path | None = None,
    *,
    model: Path | None = None,
    prefill: int | None = None,
    decode: int | None = None,
    transport: Transport | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: Name = None,
) -> int:
    """Serve a model from this machine until Ctrl-C. The API key is BATON_API_KEY, or a fresh one.

    :param file: a Model resource (YAML), in place of --model.
    :param model: a directory in Hugging Face format.
    :param prefill: prefill workers.
    :param decode: decode workers.
    :param transport: how KV blocks move.
    :param host: address the gateway listens on.
    :param port: port of the gateway; 0 takes a free one.
    """
    resource = read_model(file, Changes(model, prefill, decode, transport))
    return asyncio.run(serve(resource, named(name or resource.metadata.name), View(), host=host, port=port))


@app.command
def demo(*, model: Path | None = None, transport: Transport = "ucx") -> int:
    """Start prefill, decode and gateway with a small model, ask it, show where the time went, stop.

    :param model: another directory in Hugging Face format.
    :param transport: how KV blocks move.
    """
    resource = demonstration.demo_model(model or demonstration.find_source(), transport)
    return asyncio.run(demonstration.demo(named("demo"), View(), resource))


@app.command
def chat(*, name: Name = None, url: str | None = None, model: str | None = None) -> int:
    """Talk to a running deployment. Of a pipe each line is a question; exit code 1 when one is not answered.

    :param url: any OpenAI-compatible endpoint instead (its key in BATON_API_KEY).
    :param model: the model's name there.
    """
    endpoint = chatting.given_endpoint(url, model) if url else chatting.endpoint_of(name)
    if sys.stdin.isatty():
        return chatting.chat(endpoint, plain_console())
    return chatting.pipe(endpoint, plain_console(), sys.stdin)


@app.command
def status(
    *,
    name: Name = None,
    output: Output = "table",
    cluster: bool = False,
    context: Context = None,
    namespace: Namespace = None,
) -> int:
    """Workers, epochs, loads, transports of a running deployment; with --cluster, --context or --namespace the Models
    of a cluster.

    :param output: a table, or JSON.
    :param cluster: look at the cluster that the kubeconfig names.
    """
    if cluster or context or namespace:
        return asyncio.run(on_cluster.status(Chosen(context, namespace), name, output == "json"))
    running, rows = asyncio.run(looking.look(find(name)))
    if output == "json":
        print(json.dumps(looking.as_data(running, rows), indent=2))
    else:
        plain_console().print(looking.as_table(running, rows))
    return 0


@app.command
def explain(
    kind: Literal["model"], name: str, *, context: Context = None, namespace: Namespace = None, json: bool = False
) -> int:
    """What is going on with a Model on a cluster, why, and what to do next. Exit code 1 while it is not ready.

    :param kind: what to explain.
    :param name: its name.
    :param json: as JSON.
    """
    return asyncio.run(on_cluster.explain(Chosen(context, namespace), name, json))


@app.command
def doctor(*, context: Context = None, namespace: Namespace = None, json: bool = False) -> int:
    """Whether Baton can work here and on the cluster: each line ok, warn or fail, with what to do. Exit code 1 after a
    fail.

    :param json: as JSON.
    """
    return asyncio.run(on_cluster.doctor(Chosen(context, namespace), json))


def kubectl(tokens: Sequence[str] | None = None) -> None:
    """The plug-in `kubectl baton`: the same commands; `status` is the cluster's."""
    given = list(sys.argv[1:] if tokens is None else tokens)
    main([*given, "--cluster"] if given[:1] == ["status"] else given)


def main(tokens: Sequence[str] | None = None) -> None:
    """Exit code 2 for what the user can mend, which is named on stderr."""
    try:
        sys.exit(app(sys.argv[1:] if tokens is None else tokens, result_action="return_value"))
    except BatonError as error:
        complain(error.message)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `baton status | head`: nobody reads on; Python would complain again at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


if __name__ == "__main__":
    main()
