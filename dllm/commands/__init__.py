"""The `dllm` command, one module for each of its words.

model, decoding, writing, screen    what several share: loading, options, running a draft, showing a canvas
generate, chat, infill, edit        write text
score, bench, inspect               tell about a model
train, evaluate, export             make one

Each has `add_parser(commands)`; what it runs takes the parsed arguments and returns the exit status. Libraries that take long to
import are imported when a command runs. Nothing here reads the environment: `dllm.cli` does.
"""
