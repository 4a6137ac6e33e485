"""The kernels of `torch:cuda`: saved graphs and single GEMMs on an NVIDIA GPU."""
