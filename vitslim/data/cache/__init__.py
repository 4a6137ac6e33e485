"""Decoded images that later stages and later runs reuse."""
