"""Sonder: from a product's event log to an understanding of each of its users.

The library: pure functions and models. It knows no Ray and no HTTP (but for `sonder.client`); `pipelines` and
`services` are thin shells around it. Packages, lowest floor first; imports point down only:

core        configuration, errors, stable ids, storage, telemetry
events      the event contract, mapping, quarantine, public logs, the synthetic world
history     one row per user with the whole timeline, vocabulary, point-in-time cuts
encoder     user and item embeddings            interests   several interests per user
segments    lifecycle                           scoring     calibrated propensities
retrieval   nearest items and users             profiles    the profile record and its online stores
releases    one immutable set of artefacts      evaluation  protocols, metrics, baselines, the report
client      the typed HTTP client
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sonder.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The clients, imported when they are first asked for: the library itself needs no HTTP."""
    if name in ("AsyncClient", "Client"):
        from sonder import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
