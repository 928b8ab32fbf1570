"""What can go wrong in `dllm`. Callers' mistakes are also `ValueError`."""

from __future__ import annotations

from pathlib import Path


class DllmError(Exception):
    """Base of every error this package raises on purpose."""


class CheckpointError(DllmError):
    """A checkpoint on disk cannot be loaded: missing, incomplete or not of a family this package knows."""


class MissingTensorError(CheckpointError):
    def __init__(self, path: Path, names: list[str]) -> None:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        super().__init__(f"{path}: tensors missing from the checkpoint: {shown}")
        self.path, self.names = path, names


class TensorShapeError(CheckpointError):
    def __init__(self, path: Path, name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> None:
        super().__init__(f"{path}: tensor {name} has shape {list(found)}, the configuration asks for {list(expected)}")
        self.path, self.name, self.expected, self.found = path, name, expected, found


class UnknownFamilyError(CheckpointError):
    def __init__(self, path: Path, family: str, known: tuple[str, ...]) -> None:
        super().__init__(f"{path}: model_type {family!r} is not supported; known: {', '.join(known)}")
        self.path, self.family, self.known = path, family, known


class SpecialTokenError(CheckpointError):
    """The tokenizer and the configuration disagree about a special token."""

    def __init__(self, path: Path, token: str, in_config: int, in_tokenizer: int | None) -> None:
        found = "no such token" if in_tokenizer is None else f"id {in_tokenizer}"
        super().__init__(f"{path}: config.json gives {token} the id {in_config}, the tokenizer has {found}")
        self.path, self.token, self.in_config, self.in_tokenizer = path, token, in_config, in_tokenizer


class DataError(DllmError, ValueError):
    """A training file holds something that is not a dialogue."""

    def __init__(self, path: Path, line: int | None, problem: str) -> None:
        place = f"{path}" if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {problem}")
        self.path, self.line, self.problem = path, line, problem


class ConfigError(DllmError, ValueError):
    """A configuration key has a value that makes no sense."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} = {value!r}: expected {expected}")
        self.key, self.value, self.expected = key, value, expected


class DraftError(DllmError):
    """One draft cannot go on; others are untouched."""


class PromptTooLongError(DraftError, ValueError):
    def __init__(self, tokens: int, limit: int) -> None:
        super().__init__(f"the prompt and canvas need {tokens} positions, the model has {limit}")
        self.tokens, self.limit = tokens, limit


class PinsDoNotFitError(DraftError, ValueError):
    def __init__(self, pinned: int, width: int) -> None:
        super().__init__(f"pinned texts need {pinned} tokens and a closing one, the canvas has {width}")
        self.pinned, self.width = pinned, width
