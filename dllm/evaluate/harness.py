"""lm-evaluation-harness runs its tasks on a checkpoint of ours, as the model `dllm`.

    python -m dllm.evaluate.harness run --model dllm --model_args model=FOLDER,steps_per_token=1 --tasks gsm8k --apply_chat_template

The package `lm_eval` is imported when it is asked for, and only by `harness_class` and `main`; everything it asks is answered by
`Examinee`, which knows nothing of it. What can be given as `--model_args` are `Examinee`'s arguments.

Likelihoods are exact for models with a causal mode. For the others they are any-order lower bounds (`dllm.score`), drawn where a
block has more patterns than `draws`: fine for comparing a task's choices, no perplexity to compare with an autoregressive model's.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

from dllm.codec import ChatRole, Message
from dllm.draft import Draft
from dllm.drafts import DraftSpec, Failed, Plan
from dllm.engine import Engine
from dllm.errors import ConfigError, DllmError
from dllm.loader import Checkpoint
from dllm.options import DecodeOptions
from dllm.score import score

_CHAT = "\x00chat "
"""Begins a prompt that is messages in JSON: rendered to text, its special tokens would be read back as ordinary text."""
_HARNESS_DEVICE = "cuda:0"
"""What the harness says where its user named no device, be there one or not."""
_UNKNOWN_LENGTH = 256
"""Reply tokens where a task names none, as elsewhere in the harness."""


class Examinee:
    """Answers the three kinds of questions that tasks ask.

    Args:
        steps_per_token: Denoising steps for each position of a canvas; 1 is as good as a masked model gets.
        threshold: Confidence that decides a token; None is the family's.
        batch_size: Replies written together.
        draws: Patterns of masks per block of a likelihood bound.
        max_tokens: Longest reply of all; the canvas is as wide as the task asks, up to it.
        options: Fields of `DecodeOptions` to change from the family's habits.

    Raises:
        ConfigError: If a value makes no sense.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        steps_per_token: float = 1.0,
        threshold: float | None = None,
        batch_size: int = 8,
        draws: int = 128,
        seed: int = 0,
        max_tokens: int = 1024,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        from dllm.habits import family_options

        for name, value in (
            ("steps_per_token", steps_per_token),
            ("batch_size", batch_size),
            ("max_tokens", max_tokens),
        ):
            if not value > 0:
                raise ConfigError(name, value, "above 0")
        known = {field.name for field in dataclasses.fields(DecodeOptions)}
        if unknown := sorted(set(options or {}) - known):
            raise ConfigError(unknown[0], (options or {})[unknown[0]], f"one of {', '.join(sorted(known))}")
        self._checkpoint, self._steps_per_token = checkpoint, steps_per_token
        self._threshold = checkpoint.defaults.threshold if threshold is None else threshold
        self._draws, self._seed, self._max_tokens = draws, seed, max_tokens
        habits = family_options(checkpoint.defaults, checkpoint.spec)
        self._options = dataclasses.replace(habits, **{"seed": seed, **(options or {})})
        self._engine = Engine(checkpoint.model, checkpoint.codec.token_table, max_batch=int(batch_size))
        self._batch = int(batch_size)

    @property
    def _first(self) -> int:
        """What stands before a text that nothing stands before."""
        special = self._checkpoint.spec.special
        return special.end if special.bos is None else special.bos

    # --- prompts ------------------------------------------------------------------------------------------------------

    @staticmethod
    def chat(messages: Sequence[Mapping[str, str]]) -> str:
        """Messages as one prompt text, which `prompt` reads back; a last message of the assistant's is the reply's beginning."""
        return _CHAT + json.dumps([{"role": one["role"], "content": one["content"]} for one in messages])

    def prompt(self, context: str) -> list[int]:
        """Tokens of a context, plain or from `chat`; text behind the messages belongs to the reply.

        Raises:
            ConfigError: If a message has no role that chats have.
        """
        codec = self._checkpoint.codec
        if not context.startswith(_CHAT):
            return codec.encode(context) or [self._first]
        body, end = json.JSONDecoder().raw_decode(context, len(_CHAT))
        messages, begun = [], ""
        for one in body:
            if one["role"] not in ("system", "user", "assistant", "tool"):
                raise ConfigError("role", one["role"], "system, user, assistant or tool")
            messages.append(Message(cast(ChatRole, one["role"]), one["content"]))
        if messages and messages[-1].role == "assistant":
            begun = messages.pop().text
        begun += context[end:]
        return [*codec.encode_chat(messages), *codec.encode(begun)]

    # --- questions ----------------------------------------------------------------------------------------------------

    def log_likelihood(self, context: str, continuation: str) -> tuple[float, bool]:
        """Nats of `continuation` behind `context`, and whether the model found each of its tokens the most probable.

        Spaces at the end of the context count to the continuation: tokens bring the space before them along. Of a context that is too
        long the end is kept.
        """
        bare = context.rstrip(" ") if not context.startswith(_CHAT) else context
        spaces = context[len(bare) :]
        if bare.startswith(_CHAT) or not bare:
            prompt, reply = self.prompt(bare), self._checkpoint.codec.encode(spaces + continuation)
        else:
            prompt = self._checkpoint.codec.encode(bare)
            reply = self._checkpoint.codec.encode(bare + spaces + continuation)[len(prompt) :]
        return self._score(prompt, reply)

    def rolling(self, text: str) -> float:
        """Nats of a whole text, in pieces as long as fit behind what comes before them, half of the positions each at most."""
        tokens, spec = self._checkpoint.codec.encode(text), self._checkpoint.spec
        piece = min(spec.max_position_embeddings // 2, spec.max_canvas or self._max_tokens)
        total = 0.0
        for start in range(0, len(tokens), piece):
            total += self._score([self._first, *tokens[:start]], tokens[start : start + piece])[0]
        return total

    def _score(self, prompt: Sequence[int], reply: Sequence[int]) -> tuple[float, bool]:
        if not reply:
            return 0.0, True
        spec = self._checkpoint.spec
        multiple = spec.block if spec.mask_kind == "block_causal" else spec.canvas_multiple
        room = spec.max_position_embeddings - len(reply) - multiple
        found = score(self._checkpoint.model, list(prompt)[-max(room, 1) :], reply, draws=self._draws, seed=self._seed)
        return found.log_probability, found.is_greedy

    def generate(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        """Replies to contexts, several at once. Of a task's settings `until`, `max_gen_toks`, `temperature` (with `do_sample`), `top_p`
        and `top_k` are obeyed; of a context that is too long the end is kept.
        """
        replies: list[str] = []
        for first in range(0, len(asked), self._batch):
            replies += self._generate(asked[first : first + self._batch])
        return replies

    def _generate(self, asked: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
        from dllm.reply import Reply

        replies: list[Reply] = []
        of_draft: dict[Draft, Reply] = {}
        for number, (context, settings) in enumerate(asked):
            spec = self._draft(self.prompt(context), settings, number)
            until = settings.get("until") or ()
            stops = (until,) if isinstance(until, str) else tuple(until)
            reply = Reply(
                self._checkpoint.codec,
                spec.width,
                tuple(stop for stop in stops if stop),
                drops_space=self._checkpoint.spec.dialogue is not None,
            )
            of_draft[self._engine.submit(spec)] = reply
            replies.append(reply)
        while self._engine.drafts:
            for event in self._engine.run_round():
                if isinstance(event, Failed):
                    raise event.error
                of_draft[event.draft].feed(event)
            for draft in self._engine.drafts:
                if of_draft[draft].reason is not None:
                    self._engine.cancel(draft)
        for number in range(len(asked)):
            self._engine.forget(str(number))
        return [reply.text for reply in replies]

    def _draft(self, prompt: list[int], settings: Mapping[str, Any], number: int) -> DraftSpec:
        spec = self._checkpoint.spec
        wanted = min(int(settings.get("max_gen_toks") or _UNKNOWN_LENGTH), self._max_tokens)
        width = -(-wanted // spec.canvas_multiple) * spec.canvas_multiple
        grid = spec.block if spec.mask_kind == "block_causal" else 1
        longest = spec.max_position_embeddings // grid * grid
        width = min(
            width, spec.max_canvas or width, max(longest // 2 // spec.canvas_multiple, 1) * spec.canvas_multiple
        )
        prompt = prompt[-(longest - width) :]
        steps = max(1, math.ceil(width * self._steps_per_token))
        plan = Plan(steps, steps, self._threshold, by_clause=False)
        changes: dict[str, Any] = {"seed": self._seed + number}
        temperature = settings.get("temperature")
        if settings.get("do_sample") is False:
            temperature = 0.0
        if temperature is not None:
            changes["temperature"] = float(temperature)
        for name in ("top_p", "top_k"):
            if settings.get(name) is not None:
                changes[name] = settings[name]
        return DraftSpec(tuple(prompt), str(number), width, plan, options=dataclasses.replace(self._options, **changes))


def harness_class() -> type[Any]:
    """The harness's model class, registered under the name `dllm`.

    Raises:
        ConfigError: If `lm_eval` is not installed.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import register_model
    except ImportError as error:
        raise ConfigError("lm_eval", None, "an installed package: pip install 'voiceagent[engine,eval]'") from error

    class Dllm(LM):  # type: ignore[misc, unused-ignore]
        """See `Examinee`. `model` is a folder or ORG/NAME, `device` and `dtype` are PyTorch's; what is not named here is a field of
        `DecodeOptions`."""

        def __init__(
            self,
            model: str | None = None,
            device: str | None = None,
            dtype: str | None = None,
            batch_size: int | str | None = None,
            max_batch_size: int | None = None,
            steps_per_token: float = 1.0,
            threshold: float | None = None,
            draws: int = 128,
            seed: int = 0,
            max_tokens: int = 1024,
            **options: Any,
        ) -> None:
            super().__init__()
            import torch

            from dllm.commands.model import device as device_named
            from dllm.commands.model import dtype_of, source
            from dllm.loader import load

            rows = 8 if batch_size in (None, "auto") else int(cast(int, batch_size))
            if device == _HARNESS_DEVICE and not torch.cuda.is_available():
                device = None
            self._device = device_named(device or "cpu")
            self._name = model or "built-in"
            self._examinee = Examinee(
                load(source(model), self._device, dtype_of(dtype)),
                steps_per_token=steps_per_token,
                threshold=threshold,
                batch_size=rows,
                draws=draws,
                seed=seed,
                max_tokens=max_tokens,
                options=options,
            )

        @property
        def tokenizer_name(self) -> str:
            return f"dllm {self._name}"

        def chat_template(self, chat_template: bool | str = False) -> str:
            """What the harness notes down; the checkpoint's own template is used, whatever is asked for."""
            return "the checkpoint's" if chat_template else ""

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return Examinee.chat(chat_history)

        def loglikelihood(self, requests: list[Any], **unused: Any) -> list[tuple[float, bool]]:
            return [self._noted("loglikelihood", one, self._examinee.log_likelihood(*one.args)) for one in requests]

        def loglikelihood_rolling(self, requests: list[Any], **unused: Any) -> list[float]:
            return [self._noted("loglikelihood_rolling", one, self._examinee.rolling(*one.args)) for one in requests]

        def generate_until(self, requests: list[Any], **unused: Any) -> list[str]:
            replies = self._examinee.generate([one.args for one in requests])
            return [self._noted("generate_until", one, reply) for one, reply in zip(requests, replies, strict=True)]

        def _noted(self, kind: str, request: Any, answer: Any) -> Any:
            self.cache_hook.add_partial(kind, request.args, answer)
            return answer

    registered: type[Any] = register_model("dllm")(Dllm)
    return registered


def main() -> None:
    """The harness's own command, with this model among those it knows."""
    try:
        harness_class()
    except ConfigError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from error
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except DllmError as error:
        print(f"dllm: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()
