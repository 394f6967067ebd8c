"""Vectors of a micro-batch of users -> the nearest items and the nearest other users of the served release."""
