"""Durable functions and virtual actors on a Ray cluster, with nothing to run but Ray and a folder or bucket."""

__version__ = "0.1.0"
