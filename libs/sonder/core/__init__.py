"""The ground floor: configuration, errors, stable ids, storage and the telemetry seam. Imports nothing of Sonder."""
