"""The configuration of a workspace: one frozen object per run, unknown keys rejected, the rest derived from data.

`load(path, overrides)` reads `sonder.yaml` and applies `--set section.key=value`. Relative paths are relative to the
working directory of the command, as in any shell. None means "derived from the data"; what was derived is written
into the manifest of the step that derived it.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import (
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from sonder.core.errors import ConfigurationError
from sonder.core.input_config import EventsConfig, ItemsConfig, UsersConfig
from sonder.core.loopback import LOOPBACKS
from sonder.core.score_config import ScoreTask, ScoringConfig, expand_horizons
from sonder.core.section import Section

CONSUMERS_FILE = "consumers.yaml"  # taken from beside the configuration file if no key names another
Protocol = Literal["temporal", "leave_one_out"]


class PrepareConfig(Section):
    num_buckets: int | None = Field(None, gt=0, le=999, description="history partitions; from the log's size")


class EvaluationConfig(Section):
    """`temporal`: train before the last `test_days`, test on them. `leave_one_out`: test on each user's last item."""

    protocol: Protocol = "temporal"
    test_days: int = Field(30, gt=0)


class EncoderConfig(Section):
    dim: int = Field(64, gt=0, multiple_of=8)
    num_blocks: int = Field(2, gt=0)
    num_heads: int = Field(2, gt=0)
    max_length: int | None = Field(None, gt=0, description="newest events read; covers 95 % of users, 200 at most")
    dropout: float | None = Field(None, ge=0, lt=1, description="from the number of events per parameter")
    objective: Literal["auto", "next_action", "all_action", "dense_all_action"] = "auto"
    num_negatives: int | None = Field(None, gt=0)
    learning_rate: float = Field(2e-3, gt=0)
    max_epochs: int = Field(100, gt=0)
    patience: int = Field(10, gt=0, description="validations without improvement before training stops")
    max_training_events: int = Field(
        250_000_000, gt=0, description="of a larger log users are drawn, others for each snapshot"
    )
    max_minutes: float | None = Field(None, gt=0, description="stop at the first epoch that ends after it")
    num_workers: PositiveInt | tuple[PositiveInt, PositiveInt] = Field(
        1, description="of a training; [least, most] takes what the cluster has and follows it"
    )
    worker_resources: dict[str, PositiveFloat] = Field(
        {}, description="that each worker takes beside its CPU, or instead: {training: 1}, {CPU: 4}"
    )
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of matrix products, not of weights")
    parent: str | None = Field(None, description="release whose weights training goes on from")

    @field_validator("num_workers")
    @classmethod
    def _least_first(cls, num_workers: int | tuple[int, int]) -> int | tuple[int, int]:
        if isinstance(num_workers, tuple) and num_workers[0] > num_workers[1]:
            raise ValueError(f"found {list(num_workers)}, expected [least, most]")
        return num_workers


class InterestsConfig(Section):
    max_events: int = Field(200, gt=0, description="newest events of a user that are clustered")
    max_interests: int = Field(10, gt=0, description="interests kept per user, by weight")
    merge_distance: float | None = Field(None, gt=0, description="Ward distance that ends the merging")
    half_life_days: float | None = Field(None, gt=0, description="of an event's weight; from the log's length")
    max_affinities: int = Field(20, gt=0, description="affinities kept per user and level of the tree, by strength")


class SegmentsConfig(Section):
    """Lifecycle thresholds in days; None: from the log's own rhythm (quantiles of the gaps between active days)."""

    new_days: int | None = Field(None, gt=0)
    dormant_days: int | None = Field(None, gt=0)
    core_active_share: float | None = Field(None, gt=0, le=1)
    casual_active_share: float | None = Field(None, gt=0, le=1)
    num_clusters: int | None = Field(None, ge=2, le=1000, description="behaviour clusters; by their stability")


class AudiencesConfig(Section):
    min_export_size: int = Field(100, gt=0, description="members below which an audience is not exported")


class UpliftOutcome(Section):
    """What the treatment is to change within N days of it: whether `action` happens, or (value) the sum of values."""

    action: str | None = None
    value: bool = False
    within_days: int = Field(gt=0)

    @model_validator(mode="after")
    def _says_what(self) -> UpliftOutcome:
        if self.action is None and not self.value:
            raise ValueError("an outcome needs `action: NAME` or `value: true`")
        return self


class UpliftConfig(Section):
    """A randomised treatment of the log: users of the user table with an arm, treated at one moment."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    attribute: str = Field(description="column of the user table that holds the arm")
    control: str
    treated: str
    share: float = Field(0.5, gt=0, lt=1, description="of the two arms' users that was to be treated")
    at: datetime = Field(description="of the assignment; UTC where it names no zone")
    outcome: UpliftOutcome

    @model_validator(mode="after")
    def _two_arms(self) -> UpliftConfig:
        if self.control == self.treated:
            raise ValueError(f"uplift {self.name!r} has the same value {self.control!r} for both arms")
        return self

    @property
    def at_us(self) -> int:
        """Microseconds since 1970."""
        moment = self.at if self.at.tzinfo else self.at.replace(tzinfo=UTC)
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


class TokensConfig(Section):
    """Whose tokens are taken (`serving.tokens`)."""

    jwks: str = Field(description="URL or file of the provider's JSON Web Key Set")
    issuer: str = Field(min_length=1, description="the `iss` that a token must have")
    audience: str = Field(min_length=1, description="the `aud` that a token must have")
    scope_prefix: str = Field("", description="what stands before read, write and admin in the scope claim")
    rate: float | None = Field(None, gt=0, description="requests a second of each `sub`, in each gateway")

    @field_validator("jwks")
    @classmethod
    def _cannot_be_changed_on_the_way(cls, jwks: str) -> str:
        parts = urlsplit(jwks)
        if parts.scheme == "http" and parts.hostname not in LOOPBACKS:
            raise ValueError("expected https: whoever changes the keys on their way makes tokens")
        if parts.scheme in ("http", "https"):
            return jwks
        return str(Path(jwks).absolute())


class ServingConfig(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    grpc_port: int | None = Field(None, ge=1, le=65535, description="also answer gRPC here, at the same host")
    needs_keys: bool | None = Field(None, description="whether requests need an API key; beyond loopback if not set")
    tokens: TokensConfig | None = Field(None, description="whose signed tokens (JWT) are taken beside our own keys")
    gateways: int = Field(1, ge=1, description="replicas of the gateway; with 2, one may die unnoticed")
    store: str | None = Field(None, description="URL of a Redis or Valkey server; else embedded in the workspace")
    local_dir: str | None = Field(
        None, description="folder on each node's own disk for stores and accepted events; by the workspace if not set"
    )
    log_features: float = Field(0.0, ge=0, le=1, description="share of users whose fresh features are logged")

    @field_validator("store")
    @classmethod
    def _names_a_server(cls, store: str | None) -> str | None:
        if store is None:
            return None
        parts = urlsplit(store)
        if parts.scheme not in ("redis", "rediss", "valkey", "valkeys") or not parts.hostname:
            raise ValueError("expected redis://HOST:PORT/DB, or rediss, valkey, valkeys in place of redis")
        if parts.password or "password" in parts.query:
            raise ValueError("holds a password, which every release would keep: set SONDER_STORE_PASSWORD instead")
        return store


class TrackingConfig(Section):
    """Who is told of every build, beside the workspace; nobody unless named."""

    mlflow: str | None = Field(None, description="tracking URI of an MLflow server")
    experiment: str = Field("sonder", min_length=1, description="under which its runs are kept")

    @field_validator("mlflow")
    @classmethod
    def _holds_no_password(cls, mlflow: str | None) -> str | None:
        if mlflow is not None and urlsplit(mlflow).password:
            raise ValueError(
                "holds a password, which every release would keep: set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD instead"
            )
        return mlflow


NO_PART_OF_A_BUILD = {"workspace", "audiences", "uplift", "consumers", "serving", "tracking"}


class SonderConfig(Section):
    """Everything a build depends on."""

    workspace: str = "./workspace"
    events: EventsConfig
    items: ItemsConfig | None = None
    users: UsersConfig | None = None
    prepare: PrepareConfig = PrepareConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    encoder: EncoderConfig = EncoderConfig()
    interests: InterestsConfig = InterestsConfig()
    segments: SegmentsConfig = SegmentsConfig()
    scores: tuple[ScoreTask, ...] = ()
    scoring: ScoringConfig = ScoringConfig()
    audiences: AudiencesConfig = AudiencesConfig()
    uplift: tuple[UpliftConfig, ...] = ()
    consumers: str | None = Field(None, description="file of what a release must keep to be promoted")
    serving: ServingConfig = ServingConfig()
    tracking: TrackingConfig = TrackingConfig()
    seed: int = 7

    @field_validator("scores", mode="before")
    @classmethod
    def _one_task_per_horizon(cls, scores: Any) -> Any:
        return expand_horizons(scores) if isinstance(scores, list | tuple) else scores

    @field_validator("scores")
    @classmethod
    def _unique_names(cls, scores: tuple[ScoreTask, ...]) -> tuple[ScoreTask, ...]:
        names = [score.name for score in scores]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"score names must be unique, repeated: {', '.join(sorted(repeated))}")
        return scores

    @model_validator(mode="after")
    def _arms_are_attributes(self) -> SonderConfig:
        names = [uplift.name for uplift in self.uplift]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"uplift names must be unique, repeated: {', '.join(sorted(repeated))}")
        known = () if self.users is None else self.users.columns.attributes
        for uplift in self.uplift:
            if uplift.attribute not in known:
                raise ValueError(
                    f"uplift {uplift.name!r} reads the arm from {uplift.attribute!r}, expected one of "
                    "users.columns.attributes"
                )
        return self

    def digest(self, *sections: str) -> str:
        """16 hex digits over the named sections (if none is named, all that a build depends on)."""
        chosen = sections or tuple(sorted(set(type(self).model_fields) - NO_PART_OF_A_BUILD))
        content = {name: self.model_dump(mode="json")[name] for name in chosen}
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def load(path: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> SonderConfig:
    """Read a configuration file and apply overrides such as `encoder.dim=64` (values are YAML)."""
    file = Path(path)
    if not file.is_file():
        raise ConfigurationError(
            f"No configuration at {file}",
            expected="a YAML file such as sonder.yaml",
            do="`sonder init LOG --out sonder.yaml` writes one from a log.",
        )
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not YAML: {error}", expected="a YAML mapping") from error
    if not isinstance(raw, dict):
        raise ConfigurationError(f"{file} holds {type(raw).__name__}", expected="a mapping with `events:`")
    for override in overrides:
        _apply(raw, override)
    if "consumers" not in raw and (beside := file.with_name(CONSUMERS_FILE)).is_file():
        raw["consumers"] = str(beside)
    return validate(raw, source=str(file))


def validate(raw: dict[str, Any], *, source: str) -> SonderConfig:
    """Check a plain mapping; one line per mistake, each with its place."""
    try:
        return SonderConfig.model_validate(raw)
    except ValidationError as error:
        lines = [f"{'.'.join(str(p) for p in e['loc']) or '(top)'}: {e['msg']}" for e in error.errors()]
        raise ConfigurationError(
            f"{source} does not fit: " + "; ".join(lines),
            do="Correct the named keys; docs/configuration.md lists them.",
        ) from error


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigurationError(f"--set {override!r}", expected="section.key=value, such as encoder.dim=64")
    *parents, last = key.split(".")
    node = raw
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigurationError(f"--set {override!r}: {parent!r} is not a section", expected="section.key=value")
        node = child
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"--set {override!r}: the value is not YAML", expected="section.key=value") from error
