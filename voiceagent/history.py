"""The conversation so far, as items, and as the prompt that the next reply is written from."""

from __future__ import annotations

from collections.abc import Iterator

from voiceagent.agent import Note
from voiceagent.backends import PromptTurn
from voiceagent.errors import ProtocolError
from voiceagent.events import Item

ROOT = "root"
"""`previous_item_id` that means: before everything else."""


class History:
    """Items in order, each with an optional note: the facts a tool found in it.

    Raises:
        ProtocolError: From every method given an id that does not exist, or exists already.
    """

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._notes: dict[str, Note] = {}

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __contains__(self, item_id: str) -> bool:
        return any(item.id == item_id for item in self._items)

    @property
    def last_id(self) -> str | None:
        return self._items[-1].id if self._items else None

    def get(self, item_id: str, *, code: str = "item_retrieve_invalid_item_id") -> Item:
        return self._items[self._index(item_id, code)]

    def previous_id(self, item_id: str) -> str | None:
        index = self._index(item_id, "item_retrieve_invalid_item_id")
        return self._items[index - 1].id if index else None

    def add(self, item: Item, previous_item_id: str | None = None) -> str | None:
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

    def note(self, item_id: str, note: Note) -> None:
        """Attach what a tool made of this item; the model sees it right after the item."""
        self._index(item_id, "item_retrieve_invalid_item_id")
        self._notes[item_id] = note

    def put(self, item: Item) -> None:
        """Replace the item that has this id."""
        self._items[self._index(item.id, "item_retrieve_invalid_item_id")] = item

    def delete(self, item_id: str) -> None:
        del self._items[self._index(item_id, "item_delete_invalid_item_id")]
        self._notes.pop(item_id, None)

    def prompt(self, instructions: str) -> tuple[PromptTurn, ...]:
        """Everything the model may know, oldest first.

        Consecutive turns of one speaker are joined (a caller who paused and went on said one thing), empty ones are left out.
        """
        turns: list[PromptTurn] = []
        if instructions.strip():
            turns.append(PromptTurn("system", instructions.strip()))
        for item in self._items:
            text = (item.text or "").strip()
            if not text:
                continue
            if turns and turns[-1].role == item.role and item.role != "system":
                turns[-1] = PromptTurn(item.role, f"{turns[-1].text} {text}")
            else:
                turns.append(PromptTurn(item.role, text))
            if item.id in self._notes:
                turns.append(PromptTurn("note", self._notes[item.id].text))
        return tuple(turns)

    def must_say(self) -> tuple[str, ...]:
        """What the next reply has to contain: the newest note that no reply has answered yet."""
        for item in reversed(self._items):
            if item.role == "agent" and item.text:
                return ()
            if item.id in self._notes:
                return self._notes[item.id].must_say
        return ()

    def _index(self, item_id: str, code: str, param: str = "item_id") -> int:
        for index, item in enumerate(self._items):
            if item.id == item_id:
                return index
        raise ProtocolError(code, f"No item with id {item_id}.", param=param)
