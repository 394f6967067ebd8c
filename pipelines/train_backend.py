"""Torch's process group on the address by which Ray knows a node.

Left alone, gloo listens where the machine's own name leads. On Debian's and many cloud images that is 127.0.1.1, so
workers on other machines are refused; a machine in a namespace has the name of its host and the same fate. The
interface is looked up in each worker, by its node's address; GLOO_SOCKET_IFNAME of the node's environment wins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.execution.worker_group import WorkerGroup

VARIABLE = "GLOO_SOCKET_IFNAME"


@dataclass
class OwnAddress(TorchConfig):  # type: ignore[misc]  # Ray is untyped to mypy
    """What a TorchTrainer takes as `torch_config`."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _OwnAddressBackend


class _OwnAddressBackend(_TorchBackend):  # type: ignore[misc]
    def on_start(self, worker_group: WorkerGroup, backend_config: TorchConfig) -> None:
        worker_group.execute(listen_on_own_address)
        super().on_start(worker_group, backend_config)


def listen_on_own_address() -> None:
    """In a worker, before its process group: name the interface of the node's address to gloo."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault(VARIABLE, name)


def interface_of(address: str) -> str | None:
    """The network interface that has an address; None where none has (a node behind address translation)."""
    import psutil  # type: ignore[import-untyped]  # Ray brings it

    for name, addresses in psutil.net_if_addrs().items():
        if address in (one.address.split("%")[0] for one in addresses):
            return str(name)
    return None
