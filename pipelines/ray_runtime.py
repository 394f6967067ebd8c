"""The Ray that a pipeline runs on: the one that is there, or a small local one.

Join order: a Ray already initialised in this process; the cluster that RAY_ADDRESS names (a submitted job has it set);
else a local Ray that ends with the process. It is on the loopback interface if `sonder.core.loopback` was heeded before
Ray was imported, as the `sonder` command does.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray.exceptions import RayTaskError

from sonder.core.errors import SonderError
from sonder.core.storage import Folder

# Ray itself sets OMP_NUM_THREADS, which pyarrow, numpy and torch obey, to the CPUs of each task; Polars would start a
# thread per core in every worker.
# Ray Data runs the two halves of a shuffle in worker processes of their own, told apart by one variable each: these
# have to start and to import everything. Where all workers have both, the halves share their processes, and with tasks
# of this environment too. (Tasks without any have the same variables, in another spelling, and are told apart by that.)
_SHUFFLES = {"RAY_DATA_SHUFFLE_MAP_WORKER": "1", "RAY_DATA_SHUFFLE_REDUCE_WORKER": "1"}
BEFORE_A_SHUFFLE = {"env_vars": _SHUFFLES}
WORKER_ENV = {"POLARS_MAX_THREADS": "1", "ARROW_IO_THREADS": "2", **_SHUFFLES}
MIN_LOGICAL_CPUS = 4  # trainers hold CPUs while data tasks need some: fewer would deadlock on small machines
OBJECT_STORE_SHARE = 0.2  # of the memory; what does not fit is spilled to disk
MAX_OBJECT_STORE_BYTES = 8 << 30


def ensure_ray() -> None:
    """Join or start Ray; safe to call again."""
    if ray.is_initialized():
        return
    _quieten()
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING, "runtime_env": {"env_vars": WORKER_ENV}}
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        ray.init(
            address="local",
            num_cpus=max(MIN_LOGICAL_CPUS, os.cpu_count() or 1),
            object_store_memory=min(int(memory * OBJECT_STORE_SHARE), MAX_OBJECT_STORE_BYTES),
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            # Workers started ahead lack the environment of the tasks, so none of them would be used.
            _system_config={"prestart_worker_first_driver": False},
            **quiet,
        )


def cores_of_worker() -> int:
    """Cores for each worker of a Ray Train run on this node, which may have others than the node that started it.

    No more than the node declares: in a container that is what it may use, and affinity knows nothing of it.
    """
    import ray.train

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    if ray.is_initialized():
        here = ray.get_runtime_context().get_node_id()
        declared = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["NodeID"] == here]
        cores = min([cores, *map(int, declared)])
    workers: int = ray.train.get_context().get_local_world_size()
    return max(cores // max(workers, 1), 1)


def train_storage(folder: Folder) -> dict[str, Any]:
    """`storage_path` and `storage_filesystem` of a training: on an object store through the client of everything else.

    Ray would make a client of its own from the URI, with its own reading of the environment.
    """
    folder.fs.makedirs(folder.path, exist_ok=True)
    if not folder.is_conditional:
        return {"storage_path": folder.uri}
    return {"storage_path": folder.path, "storage_filesystem": PyFileSystem(FSSpecHandler(folder.fs))}


@contextmanager
def worker_errors() -> Iterator[None]:
    """A SonderError of a worker (Ray Data, Ray Train) comes out as itself, its cause what Ray made of it."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.raise_original_map_exception = True  # else it is the cause of another one, and causes do not travel
    try:
        with ray.data.DataContext.current(context):
            yield
    except Exception as error:
        original = _sonder_error_in(error)
        if original is None or original is error:
            raise
        raise original from error


def _sonder_error_in(error: BaseException) -> SonderError | None:
    """The first SonderError among what Ray wrapped, breadth first."""
    pending: list[object] = [error]
    while pending:
        found = pending.pop(0)
        # Ray's own class inherits from that of its cause, but its message is a traceback.
        if isinstance(found, SonderError) and not isinstance(found, RayTaskError):
            return found
        failures = getattr(found, "worker_failures", {})  # of Ray Train, by rank
        inner = [getattr(found, name, None) for name in ("cause", "_base_exc", "controller_failure", "__cause__")]
        pending += [one for one in (*failures.values(), *inner) if isinstance(one, BaseException)]
    return None


def _quieten() -> None:
    """Keep the terminal for what Sonder says; Ray Data's own log goes on into `ray-data.log` of Ray's session.

    That takes its errors too: each is raised as well, and the one about an error of ours asks to report a bug of Ray.
    """
    importlib.import_module("ray.data")  # sets its handlers up
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    # Says that tokens guard the cluster, which is what anyone expects.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
