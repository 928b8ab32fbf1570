"""The conversation so far, as items, and as the prompt that the next reply is written from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import assert_never

from voiceagent.agent import Note
from voiceagent.backends import PromptTurn
from voiceagent.errors import ProtocolError
from voiceagent.events import AnyItem, CallItem, Item, OutputItem
from voiceagent.tools import output_note

ROOT = "root"
"""`previous_item_id` that means: before everything else."""


class History:
    """Items in order, each with an optional note: the facts that a note taker found in it.

    Raises:
        ProtocolError: From every method given an id that does not exist, or exists already.
    """

    def __init__(self) -> None:
        self._items: list[AnyItem] = []
        self._notes: dict[str, Note] = {}
        self._from_client: set[str] = set()
        """Ids of the calls that a client put here: nobody waits for those."""

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[AnyItem]:
        return iter(self._items)

    def __contains__(self, item_id: str) -> bool:
        return any(item.id == item_id for item in self._items)

    @property
    def last_id(self) -> str | None:
        return self._items[-1].id if self._items else None

    def get(self, item_id: str, *, code: str = "item_retrieve_invalid_item_id") -> AnyItem:
        return self._items[self._index(item_id, code)]

    def said(self, item_id: str, *, code: str = "item_retrieve_invalid_item_id") -> Item:
        """An item that is speech or text; `code` also where it is a call or an output."""
        item = self.get(item_id, code=code)
        if not isinstance(item, Item):
            raise ProtocolError(code, f"Item {item_id} is no message.", param="item_id")
        return item

    def call(self, call_id: str) -> CallItem | None:
        return next((item for item in self._items if isinstance(item, CallItem) and item.call_id == call_id), None)

    def output(self, call_id: str) -> OutputItem | None:
        return next((item for item in self._items if isinstance(item, OutputItem) and item.call_id == call_id), None)

    def unanswered(self) -> tuple[Item, ...]:
        """What the agent has said since the caller's last words, newest first."""
        said: list[Item] = []
        for item in reversed(self._items):
            if isinstance(item, Item) and item.role == "user" and item.text:
                break
            if isinstance(item, Item) and item.role == "agent":
                said.append(item)
        return tuple(said)

    def awaited_calls(self) -> frozenset[str]:
        """`call_id` of the agent's calls since anybody last said something, as far as what came of them is not known."""
        awaited: set[str] = set()
        for item in reversed(self._items):
            if isinstance(item, Item) and item.role != "system":
                break
            if isinstance(item, CallItem) and item.id not in self._from_client and self.output(item.call_id) is None:
                awaited.add(item.call_id)
        return frozenset(awaited)

    def previous_id(self, item_id: str) -> str | None:
        index = self._index(item_id, "item_retrieve_invalid_item_id")
        return self._items[index - 1].id if index else None

    def add(self, item: AnyItem, previous_item_id: str | None = None) -> str | None:
        """Insert after `previous_item_id` (None appends, `ROOT` puts it first); returns the id it now follows."""
        if item.id in self:
            raise ProtocolError(
                "item_create_duplicate_item_id", f"An item with id {item.id} already exists.", param="item.id"
            )
        if previous_item_id is None:
            self._items.append(item)
        elif previous_item_id == ROOT:
            self._items.insert(0, item)
        else:
            self._items.insert(self._index(previous_item_id, "invalid_value", "previous_item_id") + 1, item)
        return self.previous_id(item.id)

    def supposing(self, item: Item, note: Note | None) -> History:
        """What it would be with one more item at its end; this one stays as it is."""
        other = History()
        other._items = [*self._items, item]
        other._notes = self._notes if note is None or not note.text else {**self._notes, item.id: note}
        return other

    def note(self, item_id: str, note: Note) -> None:
        """Attach what a tool made of this item; the model sees it right after the item."""
        self._index(item_id, "item_retrieve_invalid_item_id")
        self._notes[item_id] = note

    def add_from_client(self, item: AnyItem, previous_item_id: str | None = None) -> str | None:
        """`add`, for what a client made: an output must belong to a call that waits for it, and says to the model what it means."""
        if isinstance(item, CallItem) and self.call(item.call_id) is not None:
            message = f"A function call with id {item.call_id} already exists."
            raise ProtocolError("invalid_value", message, param="item.call_id")
        if isinstance(item, OutputItem):
            call = self.call(item.call_id)
            if call is None or self.output(item.call_id) is not None:
                what = "No function call with" if call is None else "There is an output already for the call with"
                raise ProtocolError("invalid_value", f"{what} id {item.call_id}.", param="item.call_id")
            item = replace(item, note=output_note(call.call.name, item.output))
        previous = self.add(item, previous_item_id)
        if isinstance(item, CallItem):
            self._from_client.add(item.id)
        return previous

    def put(self, item: Item) -> None:
        """Replace the item that has this id."""
        self._items[self._index(item.id, "item_retrieve_invalid_item_id")] = item

    def delete(self, item_id: str) -> None:
        del self._items[self._index(item_id, "item_delete_invalid_item_id")]
        self._notes.pop(item_id, None)
        self._from_client.discard(item_id)

    def prompt(self, instructions: str) -> tuple[PromptTurn, ...]:
        """Everything the model may know, oldest first.

        Consecutive turns of one speaker are joined (a caller who paused and went on said one thing), empty ones are left out.
        """
        turns: list[PromptTurn] = []
        if instructions.strip():
            turns.append(PromptTurn("system", instructions.strip()))
        for item in self._items:
            match item:
                case Item():
                    self._tell(item, turns)
                case CallItem(call_id=call_id, call=call):
                    # Models read an output right behind its call, however late it came.
                    output = self.output(call_id)
                    note = f"{call.name}: not finished yet" if output is None else output.note
                    turns.append(PromptTurn("agent", "", call, call_id))
                    turns.append(PromptTurn("note", note, call_id=call_id))
                case OutputItem():
                    pass
                case _:
                    assert_never(item)
        return tuple(turns)

    def _tell(self, item: Item, turns: list[PromptTurn]) -> None:
        text = (item.text or "").strip()
        if not text:
            return
        if turns and turns[-1].role == item.role and turns[-1].call is None and item.role != "system":
            turns[-1] = PromptTurn(item.role, f"{turns[-1].text} {text}")
        else:
            turns.append(PromptTurn(item.role, text))
        if item.id in self._notes:
            turns.append(PromptTurn("note", self._notes[item.id].text))

    def must_say(self) -> tuple[str, ...]:
        """What the next reply has to contain: the newest note that no reply has answered yet, and outputs behind it."""
        wanted: tuple[str, ...] = ()
        for item in reversed(self._items):
            if isinstance(item, OutputItem):
                wanted = (*item.must_say, *wanted)
            elif isinstance(item, Item):
                if item.role == "agent" and item.text:
                    break
                if item.id in self._notes:
                    return (*self._notes[item.id].must_say, *wanted)
        return wanted

    def _index(self, item_id: str, code: str, param: str = "item_id") -> int:
        for index, item in enumerate(self._items):
            if item.id == item_id:
                return index
        raise ProtocolError(code, f"No item with id {item_id}.", param=param)
