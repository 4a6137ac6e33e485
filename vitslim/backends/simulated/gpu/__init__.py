"""NVIDIA GPUs with tensor cores, dense and 2:4: a model of tiles and waves, fitted to measured GEMMs."""
