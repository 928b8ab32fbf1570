"""Training objectives on packed sequences: what every family can be trained with. The dialogue layout has its own, `dllm.train.objective`."""
