"""The Grafana dashboard, made from the table of metrics: a row per component, a panel per metric.

No panel can name a metric or label that does not exist, and none can be forgotten.
"""

from __future__ import annotations

import json
import sys
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "api"))
from baton_api import metrics
from baton_api.metrics import Metric

ROWS = {
    name.capitalize(): getattr(metrics, name)
    for name in ("GATEWAY", "WORKER", "KV", "OPERATOR")
    if hasattr(metrics, name)
}
QUANTILES = (0.5, 0.9, 0.99)
UNITS = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit", "perc": "percentunit", "tokens": "short"}
SELECTOR = 'namespace=~"$namespace"'
SOURCE = {"type": "prometheus", "uid": "${source}"}
WIDTH, HEIGHT, COLUMNS = 8, 8, 3


def render() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


def dashboard() -> dict[str, Any]:
    return {
        "title": "Baton",
        "uid": "baton",
        "tags": ["baton"],
        "schemaVersion": 39,
        "editable": True,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "templating": {"list": [_source_choice(), _namespace_choice()]},
        "panels": panels(),
    }


def panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    ids, y = count(1), 0
    for title, row in ROWS.items():
        made.append({"type": "row", "id": next(ids), "title": title, "gridPos": _place(0, y, 24, 1), "panels": []})
        y += 1
        for index, metric in enumerate(row):
            line, column = divmod(index, COLUMNS)
            place = _place(column * WIDTH, y + line * HEIGHT, WIDTH, HEIGHT)
            made.append({**_panel(metric), "id": next(ids), "gridPos": place})
        y += (len(row) + COLUMNS - 1) // COLUMNS * HEIGHT
    return made


def _panel(metric: Metric) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": metric.name,
        "description": metric.help,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": {"unit": unit(metric), "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
            for index, (expression, legend) in enumerate(queries(metric))
        ],
    }


def queries(metric: Metric) -> list[tuple[str, str]]:
    """PromQL and legend. A counter is a rate by its labels, a gauge a sum, a histogram its quantiles."""
    by = f" by ({', '.join(metric.labels)})" if metric.labels else ""
    legend = " ".join(f"{{{{{label}}}}}" for label in metric.labels) or "all"
    series = f"{metric.name}{{{SELECTOR}}}"
    if metric.kind == "counter":
        return [(f"sum{by} (rate({series}[$__rate_interval]))", legend)]
    if metric.kind == "gauge":
        return [(f"{'avg' if unit(metric) == 'percentunit' else 'sum'}{by} ({series})", legend)]
    labels = ", ".join(("le", *metric.labels))
    rate = f"sum by ({labels}) (rate({metric.name}_bucket{{{SELECTOR}}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"p{q * 100:g} {legend}") for q in QUANTILES]


def unit(metric: Metric) -> str:
    """Of what the panel shows: a counter's rate is per second."""
    word = metric.name.removesuffix("_total").rsplit("_", 1)[-1]
    if metric.kind != "counter":
        return UNITS.get(word, "short")
    return "Bps" if word == "bytes" else "ops"


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _source_choice() -> dict[str, Any]:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _namespace_choice() -> dict[str, Any]:
    return {
        "name": "namespace",
        "label": "Namespace",
        "type": "query",
        "datasource": SOURCE,
        "query": f"label_values({metrics.GATEWAY[0].name}, namespace)",
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }
