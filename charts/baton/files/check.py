"""What `helm test` runs: the operator is ready; every Model that says it is Ready answers a real chat completion.

Standard library only: the operator's own image runs it, with a service account that exists during the test only.
"""

from __future__ import annotations

import base64
import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from typing import Any

ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
API = "https://kubernetes.default.svc"


def fetch(url: str, headers: Any = None, body: Any = None, context: ssl.SSLContext | None = None) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers or {})
    with urllib.request.urlopen(request, context=context, timeout=30) as answer:
        content: bytes = answer.read()
        return content


def api(path: str) -> Any:
    with open(f"{ACCOUNT}/token") as token:
        headers = {"Authorization": f"Bearer {token.read()}"}
    return json.loads(fetch(API + path, headers, context=ssl.create_default_context(cafile=f"{ACCOUNT}/ca.crt")))


def operator_is_ready(url: str, within_s: float) -> None:
    end_s = time.monotonic() + within_s
    while True:
        try:
            fetch(f"{url}/ready")
            fetch(f"{url}/metrics")
            return print(f"the operator at {url} is ready and exports metrics")
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > end_s:
                sys.exit(f"the operator at {url} is not ready after {within_s:g} s: {error}")
            time.sleep(0.5)


def ready_models(namespaces: list[str]) -> list[Any]:
    paths = [f"/namespaces/{namespace}" for namespace in namespaces] or [""]
    models = [model for path in paths for model in api(f"/apis/baton.dev/v1alpha1{path}/models")["items"]]
    return [model for model in models if is_ready(model)]


def is_ready(model: Any) -> bool:
    conditions = model.get("status", {}).get("conditions", [])
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


def answers(model: Any) -> None:
    name, namespace = model["metadata"]["name"], model["metadata"]["namespace"]
    secret = api(f"/api/v1/namespaces/{namespace}/secrets/{name}-api-key")
    key = base64.b64decode(secret["data"]["api-key"]).decode().splitlines()[0]
    body = {
        "model": model["spec"].get("servedName") or name,
        "messages": [{"role": "user", "content": "What is Baton?"}],
        "max_tokens": 32,
    }
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    url = f"http://{name}-gateway.{namespace}.svc/v1/chat/completions"
    answer = json.loads(fetch(url, headers, body))
    print(f"{namespace}/{name} answered {answer['choices'][0]['message']['content']!r}, {answer['usage']}")


def main() -> None:
    operator_is_ready(os.environ["BATON_OPERATOR_URL"], float(os.environ["BATON_TIMEOUT_S"]))
    models = ready_models(json.loads(os.environ["BATON_NAMESPACES"]))
    for model in models:
        answers(model)
    print(f"{len(models)} Models are Ready and answer" if models else "no Model is Ready yet: nothing to ask")


if __name__ == "__main__":
    main()
