"""The tools of a restaurant's phone agent: one looks, one books. `booking.toml` beside this file declares them."""

from __future__ import annotations

import threading

from voiceagent.errors import ToolError

SEATS = 20
OPEN = {"monday": "closed", "sunday": "12 pm to 9 pm"}

_lock = threading.Lock()
_taken: dict[str, int] = {}


def opening_hours(day: str) -> str:
    """Text goes to the model as it is."""
    return f"{day}: {OPEN.get(day.lower(), '5 pm to 11 pm')}"


def book_table(people: int, day: str, time: str = "seven p m") -> dict[str, object]:
    """An object goes to the model as `key: value; key: value`. What `must_say` holds is in the reply word for word.

    Raises:
        ToolError: Its message is what the model is told.
    """
    day = day.lower()
    if people < 1 or OPEN.get(day) == "closed":
        raise ToolError("nobody comes" if people < 1 else f"closed on {day}")
    # Plain functions run in threads, several at once.
    with _lock:
        taken = _taken.get(day, 0)
        if taken + people > SEATS:
            raise ToolError(f"only {SEATS - taken} seats are free on {day}")
        _taken[day] = taken + people
        code = f"K{100 * len(day) + _taken[day]}"
    return {"table": 1 + taken // 2, "time": time, "code": code, "must_say": code}
