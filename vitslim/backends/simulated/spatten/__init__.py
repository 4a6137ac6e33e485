"""SpAtten (Wang et al., HPCA 2021): an accelerator of attention, with its fully connected layers on SpAtten-e2e."""
