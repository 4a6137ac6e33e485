"""A systolic array with a vector unit, after SCALE-Sim v3.0.0."""
