"""Token squeezing: fewer tokens after some blocks.

`stage.py` is the stage of the methods that score tokens by attention (eTPS, EViT, prune-only); a method of another kind
has a folder beside it, such as `predictors/` for dTPS and DynamicViT. `counts.py` computes the number of tokens that
each block keeps, and `schedule/` chooses it for a target cost. The operators that score, match and fuse tokens are in
`graph/ops`; the edits that insert them into a graph are in `graph/edits`.
"""
