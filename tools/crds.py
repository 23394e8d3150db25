"""Writes the CRDs, made from the classes in baton_api, to deploy/crds, where chart and kustomize take them from.

python tools/crds.py          writes
python tools/crds.py check    exit 1 when what is there is not what would be written
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml

from baton_api.crd_manifests import manifests

FOLDER = Path(__file__).resolve().parent.parent / "deploy/crds"
HEAD = "# Made by `python tools/crds.py` from api/baton_api/crd*.py: change those.\n"


def texts() -> dict[str, str]:
    """File name to YAML."""
    return {
        name: HEAD + yaml.safe_dump(manifest, sort_keys=False, width=4096, allow_unicode=True)
        for name, manifest in manifests().items()
    }


def main(arguments: list[str]) -> int:
    stale = [name for name, text in texts().items() if not _holds(FOLDER / name, text)]
    if arguments == ["check"]:
        print(f"stale: {stale}; run python tools/crds.py" if stale else "deploy/crds is as the classes say")
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(texts()[name])
        print(f"wrote {FOLDER / name}")
    return 0


def _holds(path: Path, text: str) -> bool:
    return path.exists() and path.read_text() == text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
