"""Recognition with PocketSphinx: a language model made from the agent's vocabulary, and worker processes that decode with it."""
