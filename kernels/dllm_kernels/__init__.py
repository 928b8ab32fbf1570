"""Kernels of diffusion decoding: for each, a plain PyTorch reference that defines the answer, and Triton for the speed."""

from dllm_kernels.canvas_attention import Cache as Cache
from dllm_kernels.canvas_attention import Canvas as Canvas
from dllm_kernels.canvas_attention import cache_in_eight_bits as cache_in_eight_bits
from dllm_kernels.canvas_attention import canvas_attention as canvas_attention
from dllm_kernels.choose import use as use
from dllm_kernels.commit_from_logits import CommitStats as CommitStats
from dllm_kernels.commit_from_logits import Given as Given
from dllm_kernels.commit_from_logits import commit_from_logits as commit_from_logits
from dllm_kernels.decoder import Decoder as Decoder
from dllm_kernels.embed import embed as embed
from dllm_kernels.head_commit import Held as Held
from dllm_kernels.head_commit import head_commit as head_commit
from dllm_kernels.mix_experts import ExpertWeights as ExpertWeights
from dllm_kernels.mix_experts import mix_experts as mix_experts
from dllm_kernels.rms_norm import add_rms_norm as add_rms_norm
from dllm_kernels.rms_norm import rms_norm as rms_norm
from dllm_kernels.rotary import HeadNorms as HeadNorms
from dllm_kernels.rotary import Target as Target
from dllm_kernels.rotary import rotate_and_store as rotate_and_store
from dllm_kernels.route_experts import Choice as Choice
from dllm_kernels.route_experts import route_experts as route_experts
from dllm_kernels.skinny_linear import skinny_linear as skinny_linear
from dllm_kernels.swiglu import swiglu as swiglu
