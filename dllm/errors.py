"""What can go wrong in `dllm`. Callers' mistakes are also `ValueError`."""

from __future__ import annotations

from pathlib import Path


class DllmError(Exception):
    """Base of every error this package raises on purpose."""


class CheckpointError(DllmError):
    """A checkpoint on disk cannot be loaded: missing, incomplete or not of a family this package knows."""


class MissingTensorError(CheckpointError):
    def __init__(self, path: Path, names: list[str]) -> None:
        super().__init__(f"{path}: tensors missing from the checkpoint: {_shortened(names)}")
        self.path, self.names = path, names


class TensorShapeError(CheckpointError):
    def __init__(self, path: Path, name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> None:
        super().__init__(f"{path}: tensor {name} has shape {list(found)}, the configuration asks for {list(expected)}")
        self.path, self.name, self.expected, self.found = path, name, expected, found


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


class NoTokenLeftError(DraftError, ValueError):
    """Everything is ruled out at a position that must be decided."""

    def __init__(self, position: int) -> None:
        super().__init__(
            f"no token is allowed at position {position} of the reply: loosen logit_bias, banned or min_tokens"
        )
        self.position = position


class CacheFullError(DraftError):
    """The prefix cache has no room for a text, even after evicting what nobody uses."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"the prefix cache has room for {free} tokens, {wanted} are needed; raise cache_bytes or wait")
        self.wanted, self.free = wanted, free


class EngineClosedError(DllmError):
    """The engine's thread was told to stop; nothing more is written by it."""

    def __init__(self) -> None:
        super().__init__("the engine is closed: this draft is not written")


class EngineFailedError(DllmError):
    """A bug on the engine's thread ended every draft it had."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"the engine failed: {type(error).__name__}: {error}")
        self.error = error


class DraftExpiredError(DraftError):
    """A draft was not finished in time and was cancelled."""

    def __init__(self, late_s: float) -> None:
        super().__init__(f"the draft was cancelled {late_s:.3f} s after the time it was wanted by")
        self.late_s = late_s


class ConstraintError(DraftError, ValueError):
    """Nothing that the draft may still write obeys its grammar."""


class TokenizerError(CheckpointError):
    """A checkpoint's tokenizer files cannot be read or do not fit the model."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class UnexpectedTensorError(CheckpointError):
    """A checkpoint holds tensors that its family does not have: most likely it is of another architecture."""

    def __init__(self, path: Path, family: str, names: list[str]) -> None:
        super().__init__(f"{path}: tensors that a {family} model does not have: {_shortened(names)}")
        self.path, self.family, self.names = path, family, names


class TensorTypeError(CheckpointError):
    def __init__(self, path: Path, name: str, found: str, readable: tuple[str, ...]) -> None:
        super().__init__(f"{path}: tensor {name} is stored as {found}; readable: {', '.join(readable)}")
        self.path, self.name, self.found, self.readable = path, name, found, readable


class TiedHeadError(CheckpointError):
    """The configuration and the weights disagree about an output head of its own."""

    def __init__(self, path: Path, name: str, is_tied: bool) -> None:
        claim = "says that the embedding is the output head, but the weights bring another" if is_tied else "asks for"
        super().__init__(f"{path}: config.json {claim} {name}" + ("" if is_tied else ", which the weights lack"))
        self.path, self.name, self.is_tied = path, name, is_tied


class MissingShardError(CheckpointError):
    def __init__(self, path: Path, names: list[str]) -> None:
        super().__init__(f"{path}: weight files named in the index are missing: {_shortened(names)}")
        self.path, self.names = path, names


class DownloadError(CheckpointError):
    """A checkpoint is not on this machine and could not be fetched from the hub."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(
            f"{name}: not a folder, not in the local cache, and not fetched: {problem}. Without a connection, copy the checkpoint's "
            "folder from another machine and give its path"
        )
        self.name, self.problem = name, problem


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


class UnrecognisedModelError(CheckpointError):
    """A config.json, or the name a caller gave, belongs to no family this package knows."""

    def __init__(self, found: str, known: tuple[str, ...]) -> None:
        super().__init__(f"no model family for {found}; known: {', '.join(known)}")
        self.found, self.known = found, known


class CallError(DllmError):
    """A tool call that cannot be read, or does not fit the tool it names.

    Args:
        problem: What is wrong, for who writes calls or reads logs.
        told: The same for the model, in words that a caller may hear: it repeats them.
    """

    def __init__(self, name: str, problem: str, told: str = "a detail is missing") -> None:
        super().__init__(f"call of {name or 'nothing'}: {problem}")
        self.name, self.problem, self.told = name, problem, told


class ConversionError(CheckpointError):
    """An autoregressive checkpoint that cannot become a diffusion checkpoint of the wanted family."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path, self.problem = path, problem


class TrainingDivergedError(DllmError):
    """A step whose loss or gradient is not a number; the weights are those of the step before."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        super().__init__(f"step {step}: loss {loss}, gradient norm {norm}; lower the learning rates or the clip")
        self.step, self.loss, self.norm = step, loss, norm


class RewardError(DllmError):
    """A reward function that does not give a number."""

    def __init__(self, name: str, reply: str, problem: str) -> None:
        super().__init__(f"reward {name}: {problem}, for the reply {reply!r}")
        self.name, self.reply, self.problem = name, reply, problem


class TrialFailedError(DllmError):
    """The process that tries an expression failed for a reason of its own: an installation without `outlines_core`, a bug."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"an expression could not be tried: {problem}")
        self.problem = problem


class TrialUnavailableError(TrialFailedError):
    """No process to try an expression in can be had at the moment."""


class TrialEndedError(DllmError):
    """Nobody waits any more for what an expression's trial would say."""

    def __init__(self) -> None:
        super().__init__("the trial of an expression was ended: nobody waits for it")
