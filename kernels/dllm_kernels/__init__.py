"""Kernels of diffusion decoding, each with the plain PyTorch reference that defines its answer."""
