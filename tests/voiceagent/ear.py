"""Windows of voice over the agent, fed to a `BargeIn`: all times are samples, nothing is heard."""

from __future__ import annotations

from typing import Any

from voiceagent.barge_in import Action, BargeIn, BargeInSettings

WINDOW = 512


class Ear:
    """Feeds windows to a `BargeIn`."""

    def __init__(self, settings: BargeInSettings | None = None, *, can_be_held: bool = False) -> None:
        self.barge_in = BargeIn(settings)
        self.can_be_held = can_be_held
        self.windows = 0

    def hear(self, seconds: float, probability: float, *, agent: bool = True, **echo: Any) -> list[Action]:
        new: list[Action] = []
        for _ in range(round(seconds * 16_000 / WINDOW)):
            start = self.windows * WINDOW
            self.windows += 1
            new += self.barge_in.update(
                probability, start, start + WINDOW, agent_is_audible=agent, can_be_held=self.can_be_held, **echo
            )
        return new

    def voice(self, seconds: float, *, agent: bool = True) -> list[Action]:
        return self.hear(seconds, 0.95, agent=agent)

    def quiet(self, seconds: float, *, agent: bool = True) -> list[Action]:
        return self.hear(seconds, 0.02, agent=agent)


def hear(
    barge_in: BargeIn,
    at: int,
    windows: int,
    probability: float,
    *,
    hum: float = 0.0,
    level_db: float = -20.0,
    can_be_held: bool = False,
    has_asked: bool = True,
) -> list[Action]:
    """Windows from number `at` on; the sound is told only where it is asked for."""
    said: list[Action] = []
    for number in range(at, at + windows):
        start, end = number * WINDOW, (number + 1) * WINDOW
        told = None if barge_in.listens_from(start, end) is None else hum
        said += barge_in.update(
            probability,
            start,
            end,
            agent_is_audible=True,
            level_db=level_db,
            hum=told,
            can_be_held=can_be_held,
            has_asked=has_asked,
        )
    return said
