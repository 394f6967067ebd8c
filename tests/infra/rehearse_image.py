"""Run a Dockerfile without a container engine, then commands in what it made, as Kubernetes would run them.

    unshare --mount python rehearse_image.py DOCKERFILE CONTEXT FOLDER COMMAND...

Each stage is a root of its own: this machine's /usr with a clean Python under /usr/local in front, a copy of /etc, and
nothing else. RUN runs in it by chroot; COPY, ARG, ENV, WORKDIR and USER are followed; what is not known is an error.
The commands then run as the image's user in namespaces of their own (processes, network with one address, mounts):
read-only root, no capabilities, /tmp and /var/lib/sonder empty and writable. The last line printed is a JSON list of
{command, exit, output}.
Limits: root and overlayfs are needed. The base image itself is played by this machine, so its size and its other
packages are not seen.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.infra.dockerfile import Instruction, Stage, ignore_rules, is_sent, read_stages

ADDRESS = "10.99.0.1"  # of the network namespace that the commands run in
_TOOLS = {"pip", "setuptools", "_distutils_hack", "pkg_resources", "distutils-precedence.pth"}


class Root:
    """The file system of a stage, mounted."""

    def __init__(self, folder: Path, python: Path) -> None:
        self.path = folder / "root"
        self.environment = {"PATH": "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"}
        self.user, self.workdir = "0:0", "/"
        for name in ("etc", "usr", "opt", "proc", "dev", "tmp", "var", "run", "root"):
            (self.path / name).mkdir(parents=True)
        for name in ("bin", "lib", "lib64", "sbin"):
            (self.path / name).symlink_to(f"usr/{name}")
        shutil.copytree("/etc", self.path / "etc", symlinks=True, dirs_exist_ok=True)
        (self.path / "tmp").chmod(0o1777)
        upper, work = folder / "upper", folder / "work"
        upper.mkdir()
        work.mkdir()
        layers = f"lowerdir={python}:/usr,upperdir={upper},workdir={work}"
        run("mount", "-t", "overlay", "overlay", "-o", layers, str(self.path / "usr"))
        for name in ("proc", "dev", "opt"):
            run("mount", "--rbind", f"/{name}", str(self.path / name))
        self.run("ldconfig")

    def at(self, path: str) -> Path:
        return self.path / (path if path.startswith("/") else f"{self.workdir}/{path}").lstrip("/")

    def run(self, command: str) -> None:
        inside = f"mkdir -p {self.workdir} && cd {self.workdir} && {command}"
        outside = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        run("chroot", str(self.path), "/bin/sh", "-ec", inside, env={**outside, **self.environment})


def run(*command: str, env: dict[str, str] | None = None) -> None:
    subprocess.run(command, check=True, env=env, stdout=sys.stderr)


def base_layer(folder: Path) -> Path:
    """A clean Python of the version that runs this, where an official Python image has it."""
    prefix = Path(sys.base_prefix)
    local = folder / "python" / "local"
    library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copytree(
        prefix, local, symlinks=True, copy_function=_link,
        ignore=lambda at, names: _left_out(Path(at).relative_to(prefix), names, library),
    )  # fmt: skip
    packages = prefix / library / "site-packages"
    for name in os.listdir(packages):
        if name.split("-")[0] in _TOOLS:
            source = packages / name
            copy = shutil.copytree if source.is_dir() else shutil.copy2
            copy(source, local / library / "site-packages" / name)
    (local / "bin" / "python").unlink(missing_ok=True)
    (local / "bin" / "python").symlink_to(f"python{sys.version_info.major}.{sys.version_info.minor}")
    os.setxattr(local, "trusted.overlay.opaque", b"y")  # the machine's own /usr/local is not the image's
    return folder / "python"


def _link(source: str, target: str) -> None:
    shutil.copy2(source, target)


def _left_out(at: Path, names: list[str], library: str) -> list[str]:
    if str(at) == f"{library}/site-packages":
        return names
    if str(at) == "bin":
        return [name for name in names if not name.startswith("python")]
    return [name for name in names if name in ("__pycache__", "test", "share") and str(at) in (".", library)]


def build(dockerfile: Path, context: Path, folder: Path) -> Root:
    arguments, stages = read_stages(dockerfile.read_text(encoding="utf-8"))
    rules = ignore_rules(dockerfile.with_name(dockerfile.name + ".dockerignore"))
    python, roots = base_layer(folder), {}
    for stage in stages:
        place = folder / stage.name
        place.mkdir()
        root = roots[stage.name] = Root(place, python)
        for instruction in stage.instructions:
            print(f"{stage.name}: {instruction.name} {instruction.text[:90]}", file=sys.stderr, flush=True)
            _follow(root, stage, instruction, context, rules, roots)
    del arguments
    return root


def _follow(
    root: Root, stage: Stage, instruction: Instruction, context: Path, rules: list[str], roots: dict[str, Root]
) -> None:
    name, text = instruction.name, instruction.text
    if name == "RUN":
        root.run(text)
    elif name == "COPY":
        *sources, target = instruction.words
        origin = roots[instruction.flags["from"]].path if "from" in instruction.flags else None
        for source in sources:
            _copy(root, source, target, context, rules, origin, instruction.flags.get("chmod"))
    elif name in ("ARG", "ENV"):
        for word in instruction.words:
            key, found, value = word.partition("=")
            if found:
                root.environment[key] = value
    elif name == "USER":
        root.user = text
    elif name == "WORKDIR":
        root.workdir = text
    elif name not in ("LABEL", "HEALTHCHECK", "CMD"):
        raise ValueError(f"{stage.name}: no rehearsal of {name}")


def _copy(
    root: Root, source: str, target: str, context: Path, rules: list[str], origin: Path | None, mode: str | None
) -> None:
    place = (origin or context) / source.lstrip("/")
    destination = root.at(target)
    if place.is_dir():
        for file in (one for one in place.rglob("*") if origin or one.is_file()):
            relative = file.relative_to(place)
            if origin is None and not is_sent(str(file.relative_to(context)), rules):
                continue
            into = destination / relative
            if file.is_dir() and not file.is_symlink():
                into.mkdir(parents=True, exist_ok=True)
                continue
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, into, follow_symlinks=False)
        return
    if origin is None and not is_sent(source, rules):
        raise FileNotFoundError(f"COPY {source}: the .dockerignore keeps it away")
    into = destination / place.name if target.endswith("/") else destination
    into.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(place, into)
    if mode:
        into.chmod(int(mode, 8))


_INSIDE = """
ip link set lo up && ip address add {address}/32 dev lo
mount --rbind {root} {root} && mount -o remount,bind,ro {root} && mount -o remount,bind,ro {root}/usr
for writable in tmp var/lib/sonder; do mount -t tmpfs -o mode=1777 tmpfs {root}/$writable; done
mkdir -p {root}/tmp/shm && chmod 1777 {root}/tmp/shm && mount --bind {root}/tmp/shm {root}/dev/shm
exec chroot {root} setpriv --reuid {user} --regid {group} --clear-groups --no-new-privs --inh-caps=-all \
  --bounding-set=-all /bin/bash -c {command}
"""


def run_as_a_pod(root: Root, command: str, environment: dict[str, str]) -> dict[str, object]:
    user, group = root.user.split(":")
    script = _INSIDE.format(address=ADDRESS, root=root.path, user=user, group=group, command=_quoted(command))
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--net", f"--mount-proc={root.path}/proc"]
    found = subprocess.run(
        [*namespaces, "/bin/sh", "-ec", f"cd / && {script}"],
        env={**root.environment, **environment, "ADDRESS": ADDRESS},
        capture_output=True, text=True, timeout=420, check=False,
    )  # fmt: skip
    return {"command": command, "exit": found.returncode, "output": (found.stdout + found.stderr)[-6000:]}


def _quoted(text: str) -> str:
    return "'" + re.sub("'", "'\\''", text) + "'"


def main() -> None:
    dockerfile, context, folder, *commands = sys.argv[1:]
    run("mount", "--make-rprivate", "/")
    root = build(Path(dockerfile), Path(context), Path(folder))
    pods = {name: value for name, value in os.environ.items() if name.startswith(("RAY_", "SONDER_"))}
    print(json.dumps([run_as_a_pod(root, command, pods) for command in commands]), flush=True)


if __name__ == "__main__":
    main()
