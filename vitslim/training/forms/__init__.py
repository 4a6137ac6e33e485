"""Forms of a graph for training, with the same outputs."""
