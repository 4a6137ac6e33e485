"""The engine of training: Lightning Fabric, the ranks of a run, and operations over them."""
