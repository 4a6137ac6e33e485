"""Schedules of token squeezing: the number of tokens that each block keeps, chosen for a target cost.

`sensitivity.py` measures the loss that squeezing each block causes, `costs.py` computes the cost of a block for its
token counts, and `solver.py` minimizes the loss within the target. The functions are the same for all methods.
"""
