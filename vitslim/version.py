"""The version of vitslim."""

__version__ = "0.1.0"
