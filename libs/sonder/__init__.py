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

__version__ = "0.1.0"
