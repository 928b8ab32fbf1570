"""The compiled kernels once for every set of instructions that they are written for and this processor has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dllm_kernels import native

_BUILT = {name: native.build(name) for name in native.available()}
BUILT = [name for name, prepared in _BUILT.items() if prepared.library is not None]
"""Empty where there is no compiler."""


@contextmanager
def using(name: native.Instructions) -> Iterator[None]:
    """Code for these, whatever the processor's best are."""
    before = native.prepare()
    native.use(_BUILT[name])
    try:
        yield
    finally:
        native.use(before)


def has_half(name: native.Instructions) -> bool:
    library = _BUILT[name].library
    return library is not None and bool(library.has_half())
