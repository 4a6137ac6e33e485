"""FACT (Qin et al., ISCA 2023), reconstructed from its abstract and secondary sources."""
