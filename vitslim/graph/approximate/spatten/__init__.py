"""SpAtten (Wang et al., HPCA 2021): cascade pruning, local value pruning and progressive quantization."""
