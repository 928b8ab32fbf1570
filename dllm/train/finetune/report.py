"""What fine-tuning did, for people (report.md) and for programs (report.json)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dllm.evaluate.bootstrap import Estimate
from dllm.train.finetune.dialogues import LeftOut, Survey
from dllm.train.finetune.measure import HeldBack, Measured, told

STOPPED = {
    "patience": "nothing became better any more",
    "budget": "the budget was used",
    "told": "it was told to stop",
}
_MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Report:
    """One run.

    `before` and `after` are of the same held-back replies, `after` of the checkpoint as it was written.
    """

    model: str
    family: str
    data: dict[str, Any]
    """Files with their hashes."""
    config: dict[str, Any]
    """The run's configuration."""
    learned: Survey
    held: Survey
    held_back: HeldBack
    before: Measured
    after: Measured
    kept_before: Estimate | None
    """Nats per token on held-back dialogues of the rehearsed sources, where there are some."""
    kept_after: Estimate | None
    curve: tuple[tuple[int, float], ...]
    """Steps and held-back loss, from the model as it was."""
    best_step: int
    steps: int
    stopped: str
    """A key of `STOPPED`."""
    positions: int
    """That the run went through, padding left out."""
    seconds_learning: float
    seconds: float
    parameters: int
    """That learned."""
    device: str

    @property
    def is_better(self) -> bool:
        return self.best_step > 0

    @property
    def summary(self) -> str:
        """One line."""
        if not self.is_better:
            return "nothing became better on the held-back dialogues, so this is the model as it was"
        return f"held-back {_nats(self.before.nats)} → {_nats(self.after.nats)} nats per token, step {self.best_step}"

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "family": self.family,
            "is_better": self.is_better,
            "data": self.data,
            "dialogues": {
                "learned": len(self.learned.kept),
                "held_back": len(self.held.kept),
                "left_out": [asdict(one) for one in (*self.learned.left_out, *self.held.left_out)],
                "shortened_turns": [asdict(one) for one in self.learned.shortened],
            },
            "turns": self.learned.turns,
            "learned_turns": self.learned.learned,
            "tokens": {"dialogues": self.learned.tokens, "learned": self.learned.learned_tokens},
            "held_back": {
                "turns": len(self.held_back.prompts),
                "written": len(self.held_back.shown),
                "before": _measures(self.before),
                "after": _measures(self.after),
            },
            "rehearsed": None
            if self.kept_before is None or self.kept_after is None
            else {"before": self.kept_before.to_json(), "after": self.kept_after.to_json()},
            "run": {
                "best_step": self.best_step,
                "steps": self.steps,
                "stopped": self.stopped,
                "positions": self.positions,
                "parameters": self.parameters,
                "device": self.device,
                "seconds_learning": round(self.seconds_learning, 1),
                "seconds": round(self.seconds, 1),
                "curve": [[step, round(loss, 5)] for step, loss in self.curve],
                "config": self.config,
            },
            "replies": [
                {
                    "dialogue": prompt.dialogue,
                    "caller": last_words(prompt.heard),
                    "expected": told(prompt),
                    "before": before.text,
                    "after": after.text,
                }
                for prompt, before, after in self._written()
            ],
            "quality_curve": None,
        }

    def to_markdown(self) -> str:
        """The report as people read it. Replies are as they were written."""
        before, after = self.before, self.after
        verdict = (
            f"Held-back replies are more probable: {_nats(before.nats)} → {_nats(after.nats)} nats per token (lower is better)."
            if self.is_better
            else "**Nothing became better on the held-back dialogues; the checkpoint written is the model as it was.**"
        )
        rows = [
            ("nats per token of the true replies", _interval(before.nats), _interval(after.nats)),
            ("exact facts", _share(before.facts), _share(after.facts)),
            ("exact calls", _share(before.calls), _share(after.calls)),
            ("overlap with the true replies (chrF)", _interval(before.chrf), _interval(after.chrf)),
            ("unfinished replies", _share(before.unfinished), _share(after.unfinished)),
        ]
        if self.kept_before is not None and self.kept_after is not None:
            rows.append(
                ("nats per token on rehearsed sources", _interval(self.kept_before), _interval(self.kept_after))
            )
        turns = ", ".join(f"{count} {role}" for role, count in sorted(self.learned.turns.items()))
        parts = [
            "# Fine-tuning report",
            verdict,
            _table(("held back", "before", "after"), rows),
            "Intervals are 95 %, by resampling dialogues. A fact is a price, time, name or pinned text that the true reply takes from the "
            "prompt; it counts when the written reply has it exactly. These replies also chose the step that is kept, which flatters *after* a "
            "little: new calls tell more.",
            "## Data",
            f"{len(self.learned.kept)} dialogues were learned from and {len(self.held.kept)} held back "
            f"({len(self.held_back.prompts)} replies, {len(self.held_back.shown)} of them written below). Learned: {turns} turns; "
            f"{self.learned.learned} agent's turns and calls with {self.learned.learned_tokens} tokens count in the loss, of "
            f"{self.learned.tokens} tokens in all.",
            _listed("Left out", (*self.learned.left_out, *self.held.left_out)),
            _listed("Agent's turns that are not learned whole", self.learned.shortened),
            "## Run",
            f"{self.model} ({self.family}) on {self.device}: {self.parameters / 1e6:.2f} M parameters learned for {self.steps} steps, "
            f"{self.positions} positions, {self.seconds_learning:.0f} s of learning and {self.seconds:.0f} s in all. It ended because "
            f"{STOPPED[self.stopped]}; kept is step {self.best_step}.",
            _table(("step", "held-back nats per token"), [(str(step), f"{loss:.4f}") for step, loss in self.curve]),
            "The quality curve that the latency budget reads (`quality_curve.json`) was the old model's and is not carried over; measure "
            "the new one with `dllm eval steps`.",
            "## Replies to held-back callers",
            "Unedited. The caller's words are as a recogniser writes them.",
            *(
                _table(
                    (f"{prompt.dialogue}", last_words(prompt.heard)),
                    [("expected", told(prompt)), ("before", before.text), ("after", after.text)],
                )
                for prompt, before, after in self._written()
            ),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _written(self) -> list[Any]:
        prompts = [self.held_back.prompts[index] for index in self.held_back.shown]
        return list(zip(prompts, self.before.replies, self.after.replies, strict=True))


def last_words(said: str, words: int = 24) -> str:
    """The end of what the caller said so far."""
    found = said.split()
    return ("… " if len(found) > words else "") + " ".join(found[-words:])


def _measures(measured: Measured) -> dict[str, Any]:
    return {
        "nats_per_token": measured.nats.to_json(),
        "exact_facts": measured.facts.to_json(),
        "exact_calls": measured.calls.to_json(),
        "chrf": measured.chrf.to_json(),
        "unfinished": measured.unfinished.to_json(),
    }


def _nats(estimate: Estimate) -> str:
    return "-" if estimate.value is None else f"{estimate.value:.3f}"


def _interval(estimate: Estimate) -> str:
    if estimate.value is None:
        return "-"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {estimate.high:.3g})"


def _share(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "none to check"
    shown = f"{100 * estimate.value:.0f} % ({100 * estimate.low:.0f} to {100 * estimate.high:.0f})"
    return f"{shown} of {estimate.count} replies"


def _listed(title: str, entries: Sequence[LeftOut]) -> str:
    if not entries:
        return ""
    lines = [f"- line {entry.line} ({entry.id}): {entry.reason}" for entry in entries[:_MOST_LISTED]]
    if len(entries) > _MOST_LISTED:
        lines.append(f"- and {len(entries) - _MOST_LISTED} more, in report.json")
    return f"{title}:\n\n" + "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
