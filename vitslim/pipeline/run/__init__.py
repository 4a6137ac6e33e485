"""The verb `run`: check, execute stages, store them, evaluate, gate, and write the artifact."""
