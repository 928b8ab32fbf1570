"""Training: data, objective, optimiser and the loop. `dllm train` is its command."""
