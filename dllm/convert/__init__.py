"""Autoregressive checkpoints as diffusion checkpoints: same weights, a mask token, another family's layout.

backbone    which architecture becomes which family, and its specification
tokens      the mask token in the tokenizer, and the tokens that end a reply
checkpoint  the copy on disk
annealing   from a causal attention mask to the family's own during training
"""
