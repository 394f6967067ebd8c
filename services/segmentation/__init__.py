"""Histories of a micro-batch of users -> their interests and lifecycle, as the served release defines them."""
