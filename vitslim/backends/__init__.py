"""Backends report the latency of a model: `measured` ones run it and take the time, `simulated` ones compute it."""
