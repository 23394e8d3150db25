"""Our Dockerfiles built for real, also where no image registry can be reached.

    python -m support.kube.images STORE [COMPONENT...]     from tests/: builds, prints seconds and sizes

Needs root and Debian's buildah and skopeo; the stand-in for the public Python image is made once with debootstrap. What
pip needs on this machine (its settings, and folders that they name) is lent to the build and is no part of an image.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
DOCKERFILES = {
    "gateway": "gateway/Dockerfile",
    "operator": "operator/Dockerfile",
    "prefill": "prefill_worker/Dockerfile",
    "decode": "decode_worker/Dockerfile",
}
BASE = "localhost/baton-base:bookworm"
PACKAGES = "python3,python3-venv,python3-pip,ca-certificates"
NAMED_SO = {"python": "python3", "python3": "python3", "pip": "pip3"}
NEEDED = ("buildah", "debootstrap", "skopeo")


def missing_tools() -> list[str]:
    return [tool for tool in NEEDED if shutil.which(tool) is None]


def tag_of(component: str, version: str = "dev") -> str:
    return f"localhost/baton-{component}:{version}"


@dataclass(frozen=True)
class Store:
    """Images in a folder of their own; kept between runs, so that only what changed is built."""

    folder: Path

    def buildah(self, *arguments: str) -> str:
        return run("buildah", "--root", f"{self.folder}/root", "--runroot", f"{self.folder}/run", *arguments)

    def has(self, tag: str) -> bool:
        return bool(self.buildah("images", "--quiet", "--filter", f"reference={tag}"))

    def make_base(self) -> None:
        """A small Debian with Python where python:3.11-slim would be; once, about 40 s."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.has(BASE):
            return
        with tempfile.TemporaryDirectory(dir=self.folder) as root:
            debootstrap(Path(root))
            container = self.buildah("from", "scratch")
            self.buildah("add", "--quiet", container, root, "/")
            self.buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", container)
            self.buildah("commit", "--quiet", "--rm", container, BASE)

    def build(self, component: str, version: str = "dev") -> str:
        """Builds one component's Dockerfile; its tag."""
        tag = tag_of(component, version)
        settings = self.folder / "pip.conf"
        settings.write_text(pip_settings())
        lent = [f"--volume={path}:{path}:ro" for path in pip_paths(settings.read_text())]
        arguments = ("--layers", "--pull-never", "--format=docker", f"--build-arg=BASE={BASE}", *lent)
        secret = f"--secret=id=pip,src={settings}"
        self.buildah("bud", *arguments, secret, f"--file={DOCKERFILES[component]}", f"--tag={tag}", str(REPOSITORY))
        return tag

    def size(self, tag: str) -> str:
        """Unpacked, shared layers included, as buildah words it."""
        return self.buildah("images", "--format", "{{.Size}}", "--filter", f"reference={tag}")

    def export(self, tags: Iterable[str]) -> Path:
        """An OCI layout of these images; layers that they share, or that an earlier export had, are written once."""
        layout = self.folder / "oci"
        index = layout / "index.json"
        index.unlink(missing_ok=True)
        where = f"[overlay@{self.folder}/root+{self.folder}/run]"
        for tag in tags:
            source, target = f"containers-storage:{where}{tag}", f"oci:{layout}:{tag}"
            run("skopeo", "copy", "--quiet", "--dest-oci-accept-uncompressed-layers", source, target)
        named = json.loads(index.read_text())
        for manifest in named["manifests"]:
            notes = manifest["annotations"]
            notes["io.containerd.image.name"] = notes["org.opencontainers.image.ref.name"]
        index.write_text(json.dumps(named))
        used = {digest for manifest in named["manifests"] for digest in blobs(layout, manifest)}
        for blob in (layout / "blobs/sha256").iterdir():
            if blob.name not in used:
                blob.unlink()
        return layout


def blobs(layout: Path, manifest: dict[str, str]) -> Iterator[str]:
    """Digests of an image's manifest, configuration and layers."""
    yield (digest := manifest["digest"].removeprefix("sha256:"))
    content = json.loads((layout / "blobs/sha256" / digest).read_text())
    for part in (content["config"], *content["layers"]):
        yield part["digest"].removeprefix("sha256:")


def run(*command: str) -> str:
    """Raises RuntimeError with the command's own words."""
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
    ended = subprocess.run(command, check=False, cwd=REPOSITORY, env=environment, text=True, capture_output=True)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}")
    return ended.stdout.strip()


def debootstrap(root: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for name, target in NAMED_SO.items():
        (root / "usr/local/bin" / name).symlink_to(f"/usr/bin/{target}")
    for leftover in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("usr/lib/python3*/EXTERNALLY-MANAGED")):
        leftover.unlink()
    shutil.rmtree(root / "var/lib/apt/lists")


def pip_settings() -> str:
    """This machine's pip settings as one file; an environment variable wins over a file."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, text=True, capture_output=True)
    found: dict[str, str] = {}
    for line in sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        found[name.split(".")[-1]] = value.strip("'")
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in sorted(found.items()))


def pip_paths(settings: str) -> Iterator[str]:
    """Files and folders of this machine that the settings name."""
    for line in settings.splitlines():
        for word in line.partition("=")[2].split():
            path = Path(word.removeprefix("file://"))
            if word.startswith("file://"):
                path = path.parent  # the pages of an index lead to files beside it
            if path.is_absolute() and path.exists():
                yield str(path)


def main(arguments: Sequence[str]) -> int:
    store = Store(Path(arguments[0]).absolute())
    if missing := missing_tools():
        print(f"missing: {', '.join(missing)}; apt-get install buildah debootstrap skopeo", file=sys.stderr)
        return 2
    store.make_base()
    for component in arguments[1:] or DOCKERFILES:
        began = time.monotonic()
        tag = store.build(component)
        print(f"{tag:32} {time.monotonic() - began:6.1f} s {store.size(tag):>10}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
