"""Token squeezing: fewer tokens after some blocks.

`stage.py` is the stage of eTPS; another method adds its own stage file beside it. Pure functions that methods share
have a file each: `schedule.py` computes the number of tokens that each block keeps. The operators that score, match and
fuse tokens are in `graph/ops/squeeze.py`; the edit that inserts them into a graph is `graph/edits/squeeze.py`.
"""
