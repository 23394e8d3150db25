"""What GET /openapi.json answers."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version

from baton_api.openapi import document

PACKAGE = "baton-serve"


def described(metrics_need_key: bool) -> bytes:
    """The document, made once at the start."""
    try:
        told = version(PACKAGE)
    except PackageNotFoundError:  # run from a source tree
        told = "0"
    return json.dumps(document(told, metrics_need_key=metrics_need_key)).encode()
