"""The typed HTTP client of a running Sonder: the only room of the library that speaks HTTP.

client      Client: profiles, recommendations, similar users, the release, with retries
problems    problem documents -> the errors of sonder.core.errors
"""

from sonder.client.client import Client

__all__ = ["Client"]
