"""Histories of a micro-batch of users -> their vectors, by the encoder of the served release."""
