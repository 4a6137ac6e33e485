"""FACT (Qin et al., ISCA 2023): eager prediction, sparse attention and an MLP of mixed precision."""
