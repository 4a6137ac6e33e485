"""Layer-wise reconstruction: compress one layer at a time so that the model's outputs change least.

`layerwise` visits the layers in order; `sensitivity` and `curvature` estimate the cost of a weight change; `gptq`,
`sparsegpt`, `alps` and `refit` are the solvers. All stage kinds may import this package;
it imports none of them.
"""
