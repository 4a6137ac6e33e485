"""Backends report the latency of a model: `measured` ones run and time it, `simulated` ones compute it."""
