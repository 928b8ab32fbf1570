"""A company's own dialogues taught to a checkpoint. `dllm finetune` is the command.

dialogues   what the file holds, what is held back, what is used and what is left out
measure     how probable the held-back replies are, and what the model writes in their place
patience    when to stop, and which step was the best
report      before and after, for people and for programs
run         all of it in order
"""
