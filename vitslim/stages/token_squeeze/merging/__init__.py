"""Methods that merge similar tokens in many blocks.

`tome.py` is the stage of ToMe and `removal.py` its numbers of tokens. `diffrate.py` is the stage of DiffRate:
`rates.py` has the differentiable rates, `simulation.py` weighs tokens instead of removing them, `learning.py` trains
the rates, and `rounding.py` turns them into numbers of tokens. `checks.py` has the checks that both methods share. The
operators are in `graph/ops/merge.py`, and the edit that inserts them is `graph/edits/merge_tokens.py`.
"""
