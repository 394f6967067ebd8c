"""Histories and vectors of a micro-batch of users -> calibrated scores with their drivers."""
