"""Parts that networks are made of; each takes tensors and knows no family."""
