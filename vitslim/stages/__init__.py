"""Stages: prune, distill, token-squeeze, quantize, export."""
