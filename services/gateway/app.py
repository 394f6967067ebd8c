"""Binds the deployments into one Serve application: the only place where they meet.

`build` is what `serve run` and `serve deploy` import (infra/serve/sonder.yaml) and what `sonder serve` starts.
This module must not postpone annotations: Serve reads the type of `args` at run time, and with
`from __future__ import annotations` it would pass a raw dict.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.schema import LoggingConfig

from services.embedding.deployment import Embedding
from services.gateway.deployment import Gateway, Refresh
from services.retrieval.deployment import Retrieval
from services.scoring.deployment import Scoring
from services.segmentation.deployment import Segmentation
from sonder.core.config import TokensConfig
from sonder.core.errors import ConfigurationError
from sonder.core.workspace import Workspace
from sonder.releases.artefacts import served_release
from sonder.releases.registry import Registry

# A stage computes one micro-batch at a time and keeps a few in its queue; more would only wait past their deadline.
STAGE_OPTIONS: dict[str, Any] = {
    "num_replicas": 1,
    "max_ongoing_requests": 4,
    "max_queued_requests": 32,
    "max_surge_percent": 100,
    "health_check_period_s": 5,
    "health_check_timeout_s": 10,
    "graceful_shutdown_timeout_s": 10,
    "ray_actor_options": {"num_cpus": 0.25},
    "logging_config": LoggingConfig(
        encoding="JSON", enable_access_log=False
    ),  # Serve's lines would hold paths: user ids
}
STAGES = {"embedding": Embedding, "segmentation": Segmentation, "scoring": Scoring, "retrieval": Retrieval}
# One process writes a store: a second one would only wait for its lock.
REFRESH_OPTIONS: dict[str, Any] = {**STAGE_OPTIONS, "max_surge_percent": 0}
GATEWAY_OPTIONS: dict[str, Any] = {
    **{name: value for name, value in STAGE_OPTIONS.items() if name != "num_replicas"},
    "max_ongoing_requests": 512,
    "max_queued_requests": 1024,
    "backpressure_config": BackpressureConfig(status_code=429, retry_after_s=1),
}


class GrpcArgs(BaseModel):
    """Where every gateway answers gRPC, on each node that has one."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)


class GatewayArgs(BaseModel):
    """Arguments of the application, from the Serve config or `sonder serve`."""

    model_config = ConfigDict(extra="forbid")

    workspace: str = Field(description="local folder or URI, the same on every node")
    release: str | None = Field(None, description="this one for good; else the served one, followed as it changes")
    needs_keys: bool = Field(False, description="whether every request needs an API key (sonder keys)")
    tokens: TokensConfig | None = Field(None, description="whose signed tokens pass beside keys (serving.tokens)")
    grpc: GrpcArgs | None = Field(None, description="where gRPC is answered too")
    gateways: int = Field(1, ge=1, description="replicas of the gateway; with 2, one may die unnoticed")
    store: str | None = Field(None, description="URL of a Redis or Valkey server; else the embedded store of the node")
    local_dir: str | None = Field(None, description="folder on each node's own disk (serving.local_dir)")
    log_features: float = Field(0.0, ge=0, le=1, description="share of users whose fresh features are logged")


def build(args: GatewayArgs) -> Application:
    """The application: every deployment starts with the same release, and each call says whose models it asks for."""
    workspace = Workspace.at(args.workspace)
    Registry(workspace).show(args.release or served_release(workspace))  # told here, not in six constructors
    _require_one_store(args)
    where = {"workspace": workspace.root.uri, "release": args.release}
    stages = {
        name: serve.deployment(kind, name=name)
        .options(**STAGE_OPTIONS)
        .bind(**where, **({"log_features": args.log_features} if kind is Scoring else {}))
        for name, kind in STAGES.items()
    }
    computing = {name: stages[name] for name in ("embedding", "segmentation", "scoring")}
    refresh = serve.deployment(Refresh, name="refresh").options(**REFRESH_OPTIONS)
    refreshing = refresh.bind(**where, **computing, store=args.store, local_dir=args.local_dir)
    gateway = serve.deployment(Gateway, name="gateway").options(**GATEWAY_OPTIONS, num_replicas=args.gateways)
    return gateway.bind(
        **where,
        **stages,
        refresh=refreshing,
        store=args.store,
        local_dir=args.local_dir,
        needs_keys=args.needs_keys,
        tokens=None if args.tokens is None else args.tokens.model_dump(),
        grpc=None if args.grpc is None else args.grpc.model_dump(),
    )


def _require_one_store(args: GatewayArgs) -> None:
    """On many nodes an embedded store would be several, or one that several machines map into memory at once."""
    import ray

    if args.store is not None or not ray.is_initialized():
        return
    working = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(working) > 1:
        raise ConfigurationError(
            f"The cluster has {len(working)} nodes, and profiles and events would lie on the disk of one",
            expected="a Redis or Valkey server that every node reaches",
            do="Set `store` (serving.store) to its URL; docs/cluster.md says how the server must be set.",
        )
