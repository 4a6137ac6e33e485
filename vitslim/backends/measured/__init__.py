"""Backends that run and time the model: one file per runtime."""
