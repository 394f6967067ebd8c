"""What is measured while serving, in one registry of this process and in Prometheus' text form.

Every metric is declared here, so the dashboard of infra/ can be held against the list. Labels are few and closed:
a route's template, a stage, a release; never a user.

Several processes of one node: with PROMETHEUS_MULTIPROC_DIR set before they start, each keeps its values in mapped
files of that folder and `exposition()` adds them up, so any gateway replica answers for the node. Without it an
exposition is that of the process.
Limits: counters of ended processes stay in the sum, gauges of theirs do not. Nodes are told apart by whoever scrapes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PREFIX = "sonder_"
FOLDER = "PROMETHEUS_MULTIPROC_DIR"

_LATENCIES_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_AGES_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0)
_USERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

REGISTRY = CollectorRegistry()
REQUEST_SECONDS = Histogram(
    "sonder_request_seconds",
    "Time from the request at the gateway to the end of its answer",
    ("method", "route", "status"),
    buckets=_LATENCIES_S,
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "sonder_stage_seconds",
    "Time that the gateway waited for a stage, its queue and the hop included",
    ("stage", "outcome"),
    buckets=_LATENCIES_S,
    registry=REGISTRY,
)
BATCH_USERS = Histogram(
    "sonder_batch_users", "Requests that shared a micro-batch", ("batch",), buckets=_USERS, registry=REGISTRY
)
AGE_AT_READ_SECONDS = Histogram(
    "sonder_age_at_read_seconds",
    "Age of a profile when it was answered; of the oldest one in a batch",
    buckets=_AGES_S,
    registry=REGISTRY,
)
REFRESH_LAG_SECONDS = Histogram(
    "sonder_refresh_lag_seconds",
    "Time from an accepted event to the stored profile that knows it",
    buckets=_AGES_S,
    registry=REGISTRY,
)
DIRTY_USERS = Gauge(
    "sonder_dirty_users",
    "Users with events that their stored profile does not know",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
DEGRADED = Counter(
    "sonder_degraded_answers", "Answers that miss what a stage should have given", ("stage",), registry=REGISTRY
)
STORE_PROFILES = Gauge(
    "sonder_store_profiles", "Profiles in the online store", multiprocess_mode="livemax", registry=REGISTRY
)
STORE_BYTES = Gauge(
    "sonder_store_bytes", "Size of the online store on this node", multiprocess_mode="livemax", registry=REGISTRY
)
RELEASE_INFO = Gauge(
    "sonder_release_info",
    "1 for the release that a gateway serves",
    ("release", "version"),
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
CANARY_ANSWERS = Counter(
    "sonder_canary_answers",
    "Answers while a canary runs, by the arm that gave them; in shadow mode the candidate's were not shown",
    ("arm", "kind", "outcome"),
    registry=REGISTRY,
)
CANARY_P99_SECONDS = Gauge(
    "sonder_canary_p99_seconds",
    "99th percentile of the time in the gateway over the canary's window",
    ("arm", "kind"),
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
CANARY_PSI = Gauge(
    "sonder_canary_psi",
    "Largest population stability index of any score between the arms of a canary",
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
CANARY_SHARE = Gauge(
    "sonder_canary_share",
    "Share of users in the running canary; 0 without one",
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
CANARY_ROLLBACKS = Counter("sonder_canary_rollbacks", "Canaries that this gateway rolled back", registry=REGISTRY)
CANARY_DROPPED = Counter(
    "sonder_canary_shadow_dropped", "Shadow answers that were not computed because of load", registry=REGISTRY
)
EXPOSURES = Counter(
    "sonder_exposures",
    "Rows of experiments that were written: users who were exposed to an arm, slots of interleaved lists",
    ("kind",),
    registry=REGISTRY,
)
EXPOSURES_LOST = Counter(
    "sonder_exposures_lost", "The same rows, dropped because they could not be written", ("kind",), registry=REGISTRY
)
EXPOSURE_WRITE_FAILURES = Counter(
    "sonder_exposure_write_failures",
    "Files of such rows that could not be written and are tried again",
    registry=REGISTRY,
)


def metric_names() -> frozenset[str]:
    """Every series' name as Prometheus sees it, with the suffixes of histograms and counters."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
    return frozenset(metric.name + suffix for metric in REGISTRY.collect() for suffix in suffixes[metric.type])


def observe_refresh_lag(seconds: float) -> None:
    """A stored profile now knows an event that was accepted so long ago."""
    REFRESH_LAG_SECONDS.observe(max(0.0, seconds))


def set_dirty_users(num_users: int) -> None:
    """Users of this process whose refresh is due or under way."""
    DIRTY_USERS.set(num_users)


_served: set[tuple[str, str]] = set()  # releases that this process has served


def set_release(release: str, version: str, *, num_profiles: int) -> None:
    """This process serves the release from now on, and no other."""
    for other in _served - {(release, version)}:
        RELEASE_INFO.labels(*other).set(0)
    _served.add((release, version))
    RELEASE_INFO.labels(release, version).set(1)
    STORE_PROFILES.set(num_profiles)


def exposition() -> bytes:
    """All metrics of the node (or of this process, see above) as text."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return generate_latest(REGISTRY)
    _forget_ended(Path(folder))
    registry = CollectorRegistry()
    registry.register(_OfNode(folder))
    return generate_latest(registry)


class _OfNode(Collector):
    """What Sonder's processes keep in the folder; Ray's keep theirs there too, which Ray exports itself."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        # The package says nothing of this class's types.
        found: Iterable[Metric] = MultiProcessCollector(CollectorRegistry(), path=self._folder).collect()  # type: ignore[no-untyped-call]
        return (metric for metric in found if metric.name.startswith(PREFIX))


def _forget_ended(folder: Path) -> None:
    """Gauges of processes that ended, killed ones too, are no longer true."""
    for file in folder.glob("gauge_live*.db"):
        ended = re.search(r"_(\d+)\.db$", file.name)
        if ended and not Path("/proc", ended[1]).exists():
            file.unlink(missing_ok=True)
