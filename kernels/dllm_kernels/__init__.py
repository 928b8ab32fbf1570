"""Kernels of diffusion decoding: for each, a plain PyTorch reference that defines the answer, and Triton for the speed."""

from dllm_kernels.commit_from_logits import CommitStats as CommitStats
from dllm_kernels.commit_from_logits import commit_from_logits as commit_from_logits
