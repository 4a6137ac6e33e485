"""Progress of commands: on the terminal, as events for programs, and for TensorBoard."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
