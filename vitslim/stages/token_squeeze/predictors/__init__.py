"""Methods whose predictors choose the tokens: dTPS and DynamicViT.

`warm_start.py` trains new predictors to rank tokens as the attention does; a later distill stage trains them together
with the model, by `graph/training_form.py`.
"""
