"""Our Dockerfiles built for real, also where no image registry can be reached.

    python -m support.kube.images STORE [COMPONENT...]     from tests/: builds, prints seconds and sizes

Needs root and Debian's buildah; the stand-in for the public Python image is made once with debootstrap. What pip needs
on this machine (its settings, and folders that they name) is lent to the build and is no part of an image.
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
NEEDED = ("buildah", "debootstrap")


def missing_tools() -> list[str]:
    return [tool for tool in NEEDED if shutil.which(tool) is None]


def tag_of(component: str, version: str = "dev") -> str:
    return f"localhost/baton-{component}:{version}"


@dataclass(frozen=True)
class Store:
    """Images in a folder of their own; kept between runs, so that only what changed is built."""

    folder: Path

    def buildah(self, *arguments: str, quiet: bool = True) -> str:
        """Raises RuntimeError with buildah's own words."""
        command = ["buildah", "--root", f"{self.folder}/root", "--runroot", f"{self.folder}/run", *arguments]
        environment = os.environ | {"BUILDAH_ISOLATION": "chroot"}
        ended = subprocess.run(command, check=False, cwd=REPOSITORY, env=environment, text=True, capture_output=True)
        if ended.returncode:
            raise RuntimeError(f"{' '.join(command)}\n{ended.stdout[-4000:]}\n{ended.stderr[-4000:]}")
        if not quiet:
            print(ended.stdout)
        return ended.stdout.strip()

    def has(self, tag: str) -> bool:
        return tag.split(":")[0] in self.buildah("images", "--format", "{{.Name}}").splitlines() and bool(
            self.buildah("images", "--quiet", "--filter", f"reference={tag}")
        )

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

    def archive(self, tags: Iterable[str], target: Path) -> None:
        """One OCI archive of several images, layers that they share written once; what `ctr images import` reads."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            for tag in tags:
                self.buildah("push", "--quiet", "--disable-compression", tag, f"oci:{folder}:{tag}")
            index = Path(folder) / "index.json"
            named = json.loads(index.read_text())
            for manifest in named["manifests"]:
                notes = manifest["annotations"]
                notes["io.containerd.image.name"] = notes["org.opencontainers.image.ref.name"]
            index.write_text(json.dumps(named))
            subprocess.run(["tar", "-C", folder, "-cf", str(target), "."], check=True)


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
        print(f"missing: {', '.join(missing)}; apt-get install buildah debootstrap", file=sys.stderr)
        return 2
    store.make_base()
    for component in arguments[1:] or DOCKERFILES:
        began = time.monotonic()
        tag = store.build(component)
        print(f"{tag:32} {time.monotonic() - began:6.1f} s {store.size(tag):>10}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
