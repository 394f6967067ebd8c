"""The gateway over gRPC: the same engine, doors and answers as over HTTP (sonder.proto)."""
