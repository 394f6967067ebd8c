"""The typed HTTP clients of a running Sonder: the only room of the library that speaks HTTP.

calls           what each route is asked and answers
assigning       a user's arm in an experiment, computed here
attempts        retries with jitter under a deadline, API key, trace
client          Client
async_client    AsyncClient
problems        problem documents -> the errors of sonder.core.errors
"""

from sonder.client.async_client import AsyncClient
from sonder.client.client import Client

__all__ = ["AsyncClient", "Client"]
