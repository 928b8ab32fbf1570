"""What a drafter is asked: the history, the settings and the tools of a conversation as one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from voiceagent.backends import Drafter, DraftRequest, PromptTurn, StepPlan
from voiceagent.events import Item
from voiceagent.history import History
from voiceagent.reply import expected_prompt_tokens
from voiceagent.session import ResponseOptions, SessionSettings
from voiceagent.tools import AUTO, ToolSpec


@dataclass(slots=True)
class Asking:
    """Asks one drafter on behalf of one conversation, and knows what it was asked before.

    Args:
        server_tools: What the server runs; a response outside the conversation is not offered them, since nobody would see what they did.
    """

    conversation_id: str
    history: History
    llm: Drafter
    threshold: float
    server_tools: tuple[ToolSpec, ...] = ()
    _prompt_words: int = 0

    def warm(self, settings: SessionSettings) -> None:
        """While the caller speaks, prefill what is known already; only their words are left for the endpoint."""
        prompt = self.history.prompt(settings.instructions)
        if prompt:
            self.llm.warm(self.conversation_id, prompt, self.tools(settings, ResponseOptions()))
            self._prompt_words = _words(prompt)

    def so_far(self, settings: SessionSettings, words: str) -> tuple[PromptTurn, ...]:
        """The conversation with what the caller has said of their turn so far."""
        told = self.history.prompt(settings.instructions)
        if told and told[-1].role == "user":
            return (*told[:-1], replace(told[-1], text=f"{told[-1].text} {words}"))
        return (*told, PromptTurn("user", words))

    def last_said(self) -> str:
        """The agent's last words; empty when it has said nothing."""
        said = [item for item in self.history if isinstance(item, Item) and item.role == "agent" and item.text]
        return said[-1].text or "" if said else ""

    def tools(self, settings: SessionSettings, options: ResponseOptions) -> tuple[ToolSpec, ...]:
        """What may be called: the server's tools first, then the client's."""
        choice = options.tool_choice or settings.tool_choice
        clients = settings.tools if options.tools is None else options.tools
        offered = (*(self.server_tools if options.in_conversation else ()), *clients)
        forced = tuple(spec for spec in offered if choice.mode == "required" and spec.name == choice.name)
        return forced or offered

    def request(
        self, settings: SessionSettings, options: ResponseOptions, history: History | None = None
    ) -> DraftRequest:
        """A reply to the conversation as it stands, or to another `history`."""
        history = self.history if history is None else history
        instructions = settings.instructions if options.instructions is None else options.instructions
        if options.turns is None:
            prompt, must_say = history.prompt(instructions), history.must_say()
        else:
            system = (PromptTurn("system", instructions),) if instructions.strip() else ()
            prompt, must_say = (*system, *(PromptTurn(role, text) for role, text in options.turns)), ()
        tools = self.tools(settings, options)
        return DraftRequest(
            conversation_id=self.conversation_id,
            turns=prompt,
            plan=StepPlan(
                self._canvas_width(options.max_output_tokens or settings.max_output_tokens),
                self.llm.min_steps,
                self.llm.min_steps,
                self.threshold,
            ),
            must_say=must_say,
            temperature=settings.temperature,
            tools=tools,
            tool_choice=(options.tool_choice or settings.tool_choice) if tools else AUTO,
        )

    def new_prompt_tokens(self, settings: SessionSettings, options: ResponseOptions) -> float:
        """Tokens of the prompt that came since it was last prefilled, guessed from words."""
        words = _words(self.history.prompt(settings.instructions))
        fresh = words if options.turns is not None else max(words - self._prompt_words, 1)
        self._prompt_words = words
        return expected_prompt_tokens(fresh)

    def _canvas_width(self, max_tokens: int | None) -> int:
        widths = self.llm.canvas_widths
        fitting = [width for width in widths if max_tokens is None or width <= max_tokens]
        return max(fitting) if fitting else min(widths)


def _words(prompt: Sequence[PromptTurn]) -> int:
    return sum(len(turn.text.split()) for turn in prompt)
