"""What keeps a Ray of one machine on the loopback interface (docs/decisions/0003).

Ray replaces a loopback address that it is given by the machine's own one; only with clusters switched off, as on
Windows and macOS, does it stay on loopback. It reads the variable when it is imported, so whoever starts a Ray sets it
before; a process that joins a running cluster must not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

LOOPBACKS = ("127.0.0.1", "localhost", "::1")
LOOPBACK_ENVIRONMENT: Mapping[str, str] = MappingProxyType({"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"})
