"""Backends that run the model and take the time: one file a runtime."""
