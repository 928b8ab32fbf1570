"""A conversation as the tokens that a reply continues: the built-in family's turns, or a published checkpoint's chat template. Pure.

The oldest turns are left out when there are too many. Where the prompt was cut is remembered for each conversation and moves seldom: a
prompt whose beginning moved with every turn would find nothing in the prefix cache.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

from dllm.calls import with_tools
from dllm.codec import ChatRole, Codec, Message
from dllm.errors import ConfigError
from dllm.spoken import spoken_form
from dllm.text import DialogueCodec
from voice_pipelines.adapters.diffusion_calls import encode_call, function_body, known_tools
from voice_pipelines.adapters.remote_wire import MUST_SAY
from voiceagent.backends import PromptTurn
from voiceagent.tools import ToolCall, ToolSpec

log = logging.getLogger(__name__)

PROMPT_LIMIT = 384
"""The built-in family's prompt tokens before old turns are dropped. Training rows hold 256; half as many again still reads well, more
does not."""
PROMPT_KEEP = 256
"""What is left after dropping: well below the limit, so that the cut (and with it the cache) stays put for several turns."""

OPENING = "(The call begins.)"
"""The caller's turn before an agent that speaks first, for templates that want the caller to begin."""

NoteRole: TypeAlias = Literal["tool", "system", "user", "joined"]
"""How a note is told: as a message of its own, or at the end of what the caller said before it."""
_NOTE_ROLES: tuple[NoteRole, ...] = ("tool", "system", "user", "joined")


class PromptWriter(Protocol):
    """Used on the engine's thread only."""

    def write(
        self,
        conversation: str,
        turns: Sequence[PromptTurn],
        must_say: Sequence[str] = (),
        tools: Sequence[ToolSpec] = (),
    ) -> list[int]:
        """Tokens up to where the reply begins, at most what the model's positions allow beside a canvas.

        Args:
            must_say: Texts that the model is asked to say; empty where they are pinned.
            tools: What the model is told it may call.
        """
        ...

    def offered(self, tools: Sequence[ToolSpec]) -> Sequence[ToolSpec]:
        """Those that the model can be told of."""
        ...

    def warm_part(self, conversation: str, turns: Sequence[PromptTurn], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """What of the tokens will also begin the prompt after the caller's next words."""
        ...

    def forget(self, conversation: str) -> None: ...


def prompt_writer(codec: Codec, room: int) -> PromptWriter:
    """The way of a checkpoint's codec.

    Args:
        room: Most prompt tokens: the model's positions less the widest canvas.

    Raises:
        ConfigError: If the checkpoint has no chat template, or one that takes no conversation.
    """
    return DialoguePrompts(codec, room) if isinstance(codec, DialogueCodec) else ChatPrompts(codec, room)


class DialoguePrompts:
    """Role tokens around each turn; what the caller said is written as a recogniser would."""

    def __init__(self, codec: DialogueCodec, room: int) -> None:
        self._codec, self._room = codec, room
        self._dropped: dict[str, int] = {}

    def write(
        self,
        conversation: str,
        turns: Sequence[PromptTurn],
        must_say: Sequence[str] = (),
        tools: Sequence[ToolSpec] = (),
    ) -> list[int]:
        assert not must_say, "the built-in family takes pins"
        has_system = bool(turns) and turns[0].role == "system"
        system = with_tools(turns[0].text if has_system else "", known_tools(tools))
        head = self._codec.encode_turn("system", system) if system else []
        rest = [self._encode(turn) for turn in turns[has_system:]]
        room, limit = self._room - 1, min(PROMPT_LIMIT, self._room - 1)
        dropped = self._dropped.get(conversation, 0)
        if dropped >= len(rest):
            dropped = 0
        size = len(head) + sum(map(len, rest[dropped:]))
        if size > limit:
            most = droppable(turns[has_system:])
            while size > min(PROMPT_KEEP, limit * 2 // 3) and dropped < most:
                size -= len(rest[dropped])
                dropped += 1
        self._dropped[conversation] = dropped
        tail = [token for turn in rest[dropped:] for token in turn]
        # Instructions or a single turn beyond all positions: the beginning of the first and the end of the last count most.
        head = head[: max(room - len(tail), room // 2)]
        return [*head, *tail[max(len(tail) - (room - len(head)), 0) :], self._codec.special.agent]

    def _encode(self, turn: PromptTurn) -> list[int]:
        if turn.call is not None:
            return encode_call(self._codec, turn.call)
        return self._codec.encode_turn(turn.role, spoken_form(turn.text) if turn.role == "user" else turn.text)

    def offered(self, tools: Sequence[ToolSpec]) -> Sequence[ToolSpec]:
        names = {tool.name for tool in known_tools(tools)}
        return [spec for spec in tools if spec.name in names]

    def warm_part(self, conversation: str, turns: Sequence[PromptTurn], tools: Sequence[ToolSpec] = ()) -> list[int]:
        return self.write(conversation, turns, (), tools)[:-1]

    def forget(self, conversation: str) -> None:
        self._dropped.pop(conversation, None)


def droppable(turns: Sequence[PromptTurn]) -> int:
    """How many of the oldest turns a prompt can do without: not the last two, nor what the caller said before calls and their results."""
    spoken = [at for at, turn in enumerate(turns) if turn.role == "user"]
    return min([len(turns) - 2, *spoken[-1:]])


@dataclass(frozen=True, slots=True)
class TemplateStyle:
    """What a chat template accepts."""

    has_system: bool
    """Otherwise the instructions stand before the caller's first words."""
    alternates: bool
    """Caller and agent must take turns, and the caller begins."""
    note: NoteRole
    demand: NoteRole
    """How texts that must be said are asked for, where no note can carry it."""


class ChatPrompts:
    """A chat template's messages."""

    def __init__(self, codec: Codec, room: int) -> None:
        self._codec, self._room = codec, room
        self._dropped: dict[str, int] = {}
        self.style = find_style(codec)
        self.has_tools = self.style.note == "tool" and takes_tools(codec, self.style)

    def write(
        self,
        conversation: str,
        turns: Sequence[PromptTurn],
        must_say: Sequence[str] = (),
        tools: Sequence[ToolSpec] = (),
    ) -> list[int]:
        head = tuple(turns[:1]) if turns and turns[0].role == "system" else ()
        rest = turns[len(head) :]
        dropped = self._dropped.get(conversation, 0)
        if dropped >= len(rest):
            dropped = 0
        tokens = self._encode([*head, *rest[dropped:]], must_say, tools)
        if len(tokens) > self._room:
            most = droppable(rest)
            while len(tokens) > self._room * 2 // 3 and dropped < most:
                dropped += 1
                # What an agent said, or a note, means little without the words before it.
                if rest[dropped].role == "user" or dropped == most:
                    tokens = self._encode([*head, *rest[dropped:]], must_say, tools)
        self._dropped[conversation] = dropped
        if len(tokens) > self._room:
            # Instructions or a single turn beyond all positions: the beginning and the end count most.
            half = self._room // 2
            tokens = [*tokens[:half], *tokens[len(tokens) - (self._room - half) :]]
        return tokens

    def offered(self, tools: Sequence[ToolSpec]) -> Sequence[ToolSpec]:
        if tools and not self.has_tools:
            log.warning("the checkpoint's chat template takes no tools: the agent has none")
        return tools if self.has_tools else ()

    def warm_part(self, conversation: str, turns: Sequence[PromptTurn], tools: Sequence[ToolSpec] = ()) -> list[int]:
        """All of it: where the next prompt goes another way, the cache does too."""
        return self.write(conversation, turns, (), tools)

    def forget(self, conversation: str) -> None:
        self._dropped.pop(conversation, None)

    def _encode(self, turns: Sequence[PromptTurn], must_say: Sequence[str], tools: Sequence[ToolSpec]) -> list[int]:
        messages = chat_messages(turns, self.style, must_say, has_tools=self.has_tools)
        return self._codec.encode_chat(messages, [function_body(spec) for spec in tools] if self.has_tools else ())


def chat_messages(
    turns: Sequence[PromptTurn], style: TemplateStyle, must_say: Sequence[str] = (), *, has_tools: bool = False
) -> list[Message]:
    """The conversation as messages that the template accepts; what must be said is asked for behind everything else.

    A call is told where the template takes tools; elsewhere its result alone.
    """
    messages: list[Message] = []
    instructions = ""
    for turn in turns:
        match turn.role:
            case "system" if not messages and not style.has_system:
                instructions = turn.text
            case "system" if not messages:
                messages.append(Message("system", turn.text))
            case "user":
                _say(messages, "user", turn.text, style)
            case "agent" if turn.call is not None:
                if has_tools:
                    messages.append(Message("assistant", "", tool_calls=(_call_body(turn),)))
            case "note" if turn.call_id and has_tools:
                messages.append(Message("tool", turn.text, tool_call_id=turn.call_id))
            case "agent":
                if style.alternates and (not messages or messages[-1].role == "system"):
                    messages.append(Message("user", OPENING))
                _say(messages, "assistant", turn.text, style)
            case "note" | "system":
                _tell(messages, turn.text, style.note)
    if must_say:
        demand = MUST_SAY.format(texts=", ".join(f'"{text}"' for text in dict.fromkeys(must_say)))
        if turns and turns[-1].role == "note":
            messages[-1] = replace(messages[-1], text=f"{messages[-1].text}\n{demand}")
        else:
            _tell(messages, demand, style.demand)
    if not any(message.role == "user" for message in messages):
        # Few templates begin a reply to nobody.
        messages.append(Message("user", OPENING))
    if instructions:
        first = next(index for index, message in enumerate(messages) if message.role == "user")
        messages[first] = replace(messages[first], text=f"{instructions}\n\n{messages[first].text}")
    return messages


def _call_body(turn: PromptTurn) -> dict[str, object]:
    assert turn.call is not None
    arguments = json.dumps(dict(turn.call.arguments), ensure_ascii=False, default=str)
    return {"id": turn.call_id, "type": "function", "function": {"name": turn.call.name, "arguments": arguments}}


def _say(messages: list[Message], role: ChatRole, text: str, style: TemplateStyle) -> None:
    if style.alternates and messages and messages[-1].role == role:
        messages[-1] = replace(messages[-1], text=f"{messages[-1].text}\n{text}")
    else:
        messages.append(Message(role, text))


def _tell(messages: list[Message], text: str, how: NoteRole) -> None:
    if how != "joined":
        messages.append(Message(how, text))
    elif messages and messages[-1].role == "user":
        messages[-1] = replace(messages[-1], text=f"{messages[-1].text}\n\n({text})")
    else:
        messages.append(Message("user", f"({text})"))


def find_style(codec: Codec) -> TemplateStyle:
    """Ask the template: a way of telling things is good when it is not refused and all that was told is in the prompt.

    Raises:
        ConfigError: If not even a caller's words alone are accepted.
    """
    ask = Message("user", "first words")
    answer, more = Message("assistant", "second words"), Message("user", "third words")
    if not _accepts(codec, [ask, answer, more]):
        codec.encode_chat([ask, answer, more])
        raise ConfigError("chat_template", "a template", "one that shows what caller and agent said")
    system = Message("system", "these instructions")
    has_system = _accepts(codec, [system, ask, answer, more])
    begin = [system] if has_system else []
    alternates = not _accepts(codec, [*begin, answer, ask, more])
    notes: list[NoteRole] = []
    for role in _NOTE_ROLES:
        told = [*begin, ask, answer, more]
        _tell(told, "a note", role)
        if _accepts(codec, told) and _accepts(codec, [*told, answer, ask]):
            notes.append(role)
    return TemplateStyle(has_system, alternates, notes[0], next(role for role in notes if role != "tool"))


def takes_tools(codec: Codec, style: TemplateStyle) -> bool:
    """Whether the template shows tools, a call and its result."""
    spec = ToolSpec("a_tool_name", "what it does")
    begin = [Message("system", "these instructions")] if style.has_system else []
    call = PromptTurn("agent", "", ToolCall("a_tool_name", {"key": "a value"}), "call_00001")
    told = [Message("user", "first words"), Message("assistant", "", tool_calls=(_call_body(call),))]
    told += [Message("tool", "second words", tool_call_id="call_00001")]
    try:
        prompt = codec.decode(codec.encode_chat([*begin, *told], [function_body(spec)]))
    except ConfigError:
        return False
    return all(text in prompt for text in ("what it does", "a value", "second words"))


def _accepts(codec: Codec, messages: Sequence[Message]) -> bool:
    try:
        prompt = codec.decode(codec.encode_chat(messages))
    except ConfigError:
        return False
    at = 0
    for message in messages:
        found = prompt.find(message.text, at)
        if found < 0:
            return False
        at = found + len(message.text)
    return True
