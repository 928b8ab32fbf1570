"""Diffusion language models: canvases, denoising steps, prefix caches, checkpoints and training."""
