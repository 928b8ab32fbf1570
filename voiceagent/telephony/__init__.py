"""Phone bridges: each dialect is a codec with no socket in it, and `call` is the caller behind any of them."""
