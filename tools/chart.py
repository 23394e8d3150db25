"""What of the chart and of deploy/ is made from something else: `python tools/chart.py write | check`.

The CRDs of the chart are those of deploy/crds, kept by Helm; its dashboard is made from the table of metrics; its
README from values and their schema. deploy/base and deploy/overlays are the chart, rendered. Needs helm (3 or 4) on the
PATH or in KUBE_ASSETS.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tools"))
import dashboards  # noqa: E402

CHART = REPOSITORY / "charts/baton"
DEPLOY = REPOSITORY / "deploy"
NAMESPACE = "baton-system"
KUBE_VERSION = "1.36.0"
PROFILES = ("cpu-demo", "namespaced", "restricted")
KEEP = {"helm.sh/resource-policy": "keep"}
MADE = "# Made by `python tools/chart.py write`; do not edit.\n"


def files() -> dict[Path, str]:
    """Every made file that needs no helm, with its text."""
    made = {CHART / "files/dashboards/baton.json": dashboards.render(), CHART / "README.md": readme()}
    for path in sorted((DEPLOY / "crds").glob("*.yaml")):
        made[CHART / "files/crds" / path.name] = kept(path.read_text())
    return made


def kept(text: str) -> str:
    """A CRD that Helm does not delete: deleting it would delete every Model."""
    document = yaml.safe_load(text)
    document["metadata"]["annotations"] = {**document["metadata"].get("annotations", {}), **KEEP}
    return MADE + yaml.safe_dump(document, sort_keys=False, width=120)


def rendered(helm: str) -> dict[Path, str]:
    """deploy/base and deploy/overlays; the chart's own files have to be written before."""
    crds = "".join(f"---\n{path.read_text()}" for path in sorted((DEPLOY / "crds").glob("*.yaml")))
    made = {
        DEPLOY / "base/crds/kustomization.yaml": _kustomization(["crds.yaml"]),
        DEPLOY / "base/crds/crds.yaml": MADE + crds,
    }
    for folder, values in {"base": [], **{f"overlays/{name}": [f"values-{name}.yaml"] for name in PROFILES}}.items():
        with_crds = {"base": ["crds"], "overlays/namespaced": []}.get(folder, ["../../base/crds"])
        made[DEPLOY / folder / "kustomization.yaml"] = _kustomization([*with_crds, "operator.yaml"])
        made[DEPLOY / folder / "operator.yaml"] = MADE + _namespace(folder) + template(helm, values)
    return made


def _kustomization(resources: list[str]) -> str:
    lines = "".join(f"  - {name}\n" for name in resources)
    return f"{MADE}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{lines}"


def _namespace(folder: str) -> str:
    """The installation's namespace, with Pod Security "restricted"; with no cluster-wide right it has to exist."""
    if folder == "overlays/namespaced":
        return ""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    return "---\n" + yaml.safe_dump(manifest, sort_keys=False)


def template(helm: str, values: list[str], *arguments: str) -> str:
    """The chart as manifests, without hooks, CRDs, dashboards and what only Helm reads."""
    files_of = [f"--values={CHART / name}" for name in values]
    command = [helm, "template", "baton", str(CHART), f"--namespace={NAMESPACE}", f"--kube-version={KUBE_VERSION}"]
    options = ("--no-hooks", "--set=crds.install=false,dashboards.create=false", *arguments)
    text = subprocess.run([*command, *files_of, *options], check=True, text=True, capture_output=True).stdout
    text = re.sub(r"^\s*(helm\.sh/chart|app\.kubernetes\.io/managed-by): .*\n", "", text, flags=re.MULTILINE)
    documents = [part.strip() for part in re.split(r"^---$", text, flags=re.MULTILINE)]
    return "".join(f"---\n{part}\n" for part in sorted(part for part in documents if part))


def find_program(name: str = "helm") -> str | None:
    """From KUBE_ASSETS first, then from the PATH."""
    return shutil.which(name, path=f"{os.environ.get('KUBE_ASSETS', '')}:{os.environ.get('PATH', '')}")


def readme() -> str:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    rows = "".join(
        f"| `{path}` | `{default}` | {text} |\n" for path, default, text in described(values, schema, schema)
    )
    head = (CHART / "README.head.md").read_text()
    return f"{head}\n## Values\n| value | default | what it is |\n|---|---|---|\n{rows}"


def described(values: Any, schema: Any, root: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, default, description) of every leaf of the values. Raises KeyError for one that the schema lacks."""
    for name, value in values.items():
        rule = schema["properties"][name]
        properties = root["definitions"][rule["$ref"].rsplit("/", 1)[-1]] if "$ref" in rule else rule
        where = f"{path}.{name}" if path else name
        if "properties" in properties:
            yield from described(value, properties, root, where)
        else:
            yield where, json.dumps(value), rule["description"].replace("|", "\\|")


def stale(made: dict[Path, str]) -> list[str]:
    wrong = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    return [str(path.relative_to(REPOSITORY)) for path in wrong]


def write(made: dict[Path, str]) -> None:
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main(verb: str) -> int:
    helm = find_program()
    if verb == "write":
        write(files())
        if helm is None:
            sys.exit("helm is needed for deploy/: put it on the PATH, or set KUBE_ASSETS")
        write(rendered(helm))
        return 0
    wrong = [*stale(files()), *(stale(rendered(helm)) if helm else [])]
    if wrong:
        print(f"stale: {', '.join(wrong)}; run `python tools/chart.py write`", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
