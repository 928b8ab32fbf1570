"""One visit to a company of drafts: forwards over their windows, and after each the choice of what every draft may decide.

Everything between the windows and the outcome stays on the device: guesses, the selection rule, the floor, the end of the reply, revision
of decided tokens and the countdown of steps. The host is visited once, for all drafts together, after one step or after several
(`Denoiser.visit`); a draft that has come to a decision of the host's waits for it unchanged. Two things need the host within a step and say
so: grammars, and pins that have no place yet where not all of the canvas is open; their visits are one step long.

Dimensions: B drafts, W canvas positions, N wanted positions of all drafts, T window tokens, E hidden size, R remembered canvases.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import torch
from torch import Tensor

from dllm import extent
from dllm.draft import Draft, Live
from dllm.drafts import CellState
from dllm.guard import MEMORY, Action, History, watch
from dllm.outcome import PINNED, Visit
from dllm.pins import consider_pins
from dllm.placing import Cells, Placing
from dllm.reading import Reading
from dllm.revision import Seen
from dllm.schedule import deadline_floors
from dllm.selection import RuleTable, Scores, select
from dllm.staging import counting, staged
from dllm_kernels import CommitStats

if TYPE_CHECKING:
    from dllm.denoise import Denoiser

T = TypeVar("T")
Forward: TypeAlias = Callable[[Tensor | None], Tensor]
"""The company's windows through the network: [B, T] tokens, or None for those it was arranged with, to hidden states [B, T, E]."""


class Round:
    """A visit's canvases on the device, from the first forward's output to what goes back to the host.

    Cells are [B, W]; those behind a draft's own width count as decided and hold the mask token. All that the steps read is uploaded when it
    is made: `run` itself sends nothing to the device.

    Args:
        count: Steps; for more than one each draft's `Live.alike` must be as large.
        is_whole: Read every open position, whatever is decided: then shapes depend on the windows alone.
    """

    def __init__(
        self, shared: Denoiser, drafts: Sequence[Draft], lives: Sequence[Live], count: int, *, is_whole: bool = False
    ) -> None:
        self.shared, self.drafts, self.lives, self.count = shared, drafts, lives, count
        self.device, self.classes = shared.device, shared.classes
        self.size = max(draft.canvas.width for draft in drafts)
        self.rules = shared.rules_of(drafts)
        self.has_clauses = any(live.stop == "clause" for live in lives)
        self.has_facts = any(draft.plan.fact_threshold for draft in drafts)
        self.has_watched = any(draft.history is not None for draft in drafts)
        pairs = list(enumerate(zip(drafts, lives, strict=True)))
        self.placing = {
            row: Placing(draft, self.classes, self.device)
            for row, (draft, live) in pairs
            if draft.unplaced and (is_whole or count > 1)
        }
        """Drafts whose pins find their places on the device, by row: where the host is not visited after the step, or the step is recorded. Where
        it is, asking it costs a CPU less: with these small operators a step of the built-in model took 11.3 ms instead of 9.8."""
        self.most_pins = max((placing.shape[0] for placing in self.placing.values()), default=0)
        self.asking = [row for row, (draft, _) in pairs if draft.unplaced and row not in self.placing]
        """Those that ask the host for them."""
        # A pin that is fixed may have what stands behind it decided anew: then that is looked at in the visit's next step.
        self.reading = Reading(
            shared,
            drafts,
            [
                (_open_positions if is_whole or row in self.placing else _wanted)(draft, live)
                for row, (draft, live) in pairs
            ],
            self.size,
        )
        rules = self.reading.rules
        self.parts = rules is not None and rules.processor.parts
        self.may_end = self.parts and any(live.steps_left <= count for live in lives)
        """Whether choices that are at odds with each other cannot wait in the last step, since a draft's plan has no other."""
        source, self.carried = self._sources()
        self.at = counting(self.size, self.device)
        # One transfer for all whole numbers and one for the others: each costs as much as a few operations.
        whole = [*self._counted(), source, *self.reading.counted]
        self._lengths = [len(part) for part in whole]
        self._whole = staged([number for part in whole for number in part], self.device, torch.int64)
        self._real = staged(self._measured(), self.device, torch.float32)
        self._history = self._remembered()
        self.hidden: Tensor
        """[B, T, E], the output of the step's forward."""

    def _counted(self) -> list[list[int]]:
        """Tokens and states of cells, [B * W] each; a number or a flag per draft, [14 * B]."""
        canvases = [draft.canvas for draft in self.drafts]
        columns = [
            (
                *(draft.canvas.width, live.open_lo, live.open_hi, live.due_hi, live.beyond, live.steps_left),
                *(live.lo, live.hi, live.lead - live.lo),
                *(options.hold_ends, live.stop == "clause", options.hold_ends or live.stop == "reply"),
                *(draft.history is not None, options.revises and not options.remask_eta),
            )
            for draft, live in zip(self.drafts, self.lives, strict=True)
            for options in (draft.spec.options,)
        ]
        states = [[_STATES.get(state, 0) for state in canvas.states] for canvas in canvases]
        return [
            self._flat([canvas.tokens for canvas in canvases], self.shared.mask),
            self._flat(states, _STATES[CellState.COMMITTED]),
            [number for column in zip(*columns, strict=True) for number in column],
        ]

    def _measured(self) -> list[float]:
        """Confidences [B * W], thresholds [B], thresholds of facts [B]."""
        plans = [draft.plan for draft in self.drafts]
        confidences = self._flat([draft.canvas.confidence for draft in self.drafts], 0.0)
        return [*confidences, *(plan.threshold for plan in plans), *(plan.fact_threshold for plan in plans)]

    def _flat(self, rows: Sequence[Sequence[T]], fill: T) -> list[T]:
        """Rows made as long as the widest canvas, one behind the other."""
        return [value for row in rows for value in (*row, *[fill] * (self.size - len(row)))]

    def _unpack(self) -> None:
        """Be where the visit begins."""
        self.done = 0
        drafts = len(self.drafts)
        tokens, states, columns, self.source, *rest = torch.split(self._whole, self._lengths)
        self.tokens, states = tokens.view(drafts, -1), states.view(drafts, -1)
        self.decided, self.pinned = states > 0, states == PINNED
        self.was_decided = self.decided
        self.unplaced = torch.zeros(drafts, self.most_pins, dtype=torch.bool, device=self.device)
        self.fails = torch.zeros(drafts, dtype=torch.bool, device=self.device)
        for row, placing in self.placing.items():
            self.unplaced[row, : placing.shape[0]] = placing.start()
        numbers = columns.view(-1, drafts)
        self.width, lo, hi, self.due_hi, self.beyond, self.steps_left, *self.live = numbers[:9].unbind()
        self.holds_ends, self.stops_at_clause, self.stops_at_reply, self.is_watched, self.revises = (
            numbers[9:].bool().unbind()
        )
        self.open = (self.at >= lo.unsqueeze(1)) & (self.at < hi.unsqueeze(1))
        self.due = self.open & (self.at < self.due_hi.unsqueeze(1))
        confidence, self.threshold, self.fact_threshold = torch.split(self._real, [drafts * self.size, drafts, drafts])
        self.confidence = confidence.view(drafts, -1)
        self.history = self._history
        self.reading.take(rest)

    def _remembered(self) -> Tensor:
        """[B, R + 1]: the guard's hashes, and how many there are."""
        nothing = torch.zeros(1, MEMORY + 1, dtype=torch.int64, device=self.device)
        if not self.has_watched:
            return nothing.repeat(len(self.drafts), 1)
        kept = [draft.history for draft in self.drafts]
        return torch.cat(
            [nothing if one is None else torch.cat((one.hashes, one.known.unsqueeze(1)), dim=1) for one in kept]
        )

    def _sources(self) -> tuple[list[int], Tensor | None]:
        """Where each wanted position's hidden state is: in the flat output, or behind it among those from before the windows."""
        length = max(live.window.length for live in self.lives)
        carried: list[Tensor] = []
        rows: list[int] = []
        for row, (live, positions) in enumerate(zip(self.lives, self.reading.wanted, strict=True)):
            for at in positions:
                inside = live.lead + at - live.lo - self.shared.shift
                if inside >= 0:
                    rows.append(row * length + inside)
                    continue
                assert live.carry is not None, "a shifted model needs the row before the window"
                rows.append(len(self.lives) * length + len(carried))
                carried.append(live.carry)
        return rows, torch.stack(carried) if carried else None

    # --- several steps ----------------------------------------------------------------------------------------------------

    def run(self, forward: Forward, ids: Tensor | None) -> Tensor:
        """[count, B, 3 W + 6 + P + R + 1] float64: after each step tokens, states, confidence, counts, whether there is no room for pins, which
        of P have no place, whether the draft goes on, and the guard's memory, whose int64 travel as they are."""
        self._unpack()
        results = []
        goes_on = torch.ones(len(self.drafts), dtype=torch.bool, device=self.device)
        now = ids
        for index in range(self.count):
            before = self._state()
            counts = self.step(forward(now if index else None))
            if index:
                self._keep_back(goes_on, before)
            if index + 1 < self.count:
                assert ids is not None
                goes_on = goes_on & self._may_go_on(counts[:, 2]) & ~self.fails
                now = self._window_tokens(ids)
            states = self.decided.long() + self.pinned
            marks = (self.fails.unsqueeze(1), self.unplaced, goes_on.unsqueeze(1))
            cells = (self.tokens, states, self.confidence, counts, *marks)
            results.append(torch.cat([*(part.double() for part in cells), self.history.view(torch.float64)], dim=1))
        return torch.stack(results)

    @property
    def facts(self) -> tuple[object, ...]:
        """All that the steps decide on the host: rounds with equal facts do the same things to tensors of the same shapes."""
        return (
            self.size,
            0 if self.carried is None else len(self.carried),
            self.rules.occurring,
            self.reading.shape,
            tuple((row, placing.shape) for row, placing in self.placing.items()),
            self.may_end,
            self.has_clauses,
            self.has_facts,
            self.has_watched,
        )

    def for_recording(self) -> Round:
        """The same with tensors of its own, which `fill` may overwrite. Holds on to its drafts, of which no step reads what differs between
        rounds of equal facts."""
        own = copy.copy(self)
        own._whole, own._real, own._history = self._whole.clone(), self._real.clone(), self._history.clone()
        own.carried = None if self.carried is None else self.carried.clone()
        own.rules = RuleTable(self.rules.occurring, *(column.clone() for column in _rule_columns(self.rules)))
        own.reading = self.reading.copy()
        own.placing = {row: placing.copy() for row, placing in self.placing.items()}
        return own

    def fill(self, other: Round) -> None:
        """Become another company's, of equal facts."""
        for mine, new in zip(self._starts(), other._starts(), strict=True):
            mine.copy_(new)

    def _starts(self) -> list[Tensor]:
        carried = [] if self.carried is None else [self.carried]
        places = [column for placing in self.placing.values() for column in placing.columns]
        return [
            self._whole,
            self._real,
            self._history,
            *carried,
            *_rule_columns(self.rules),
            *self.reading.columns,
            *places,
        ]

    def look(self, results: Tensor) -> Visit:
        """The one visit to the host."""
        own = 3 * self.size + 6 + self.most_pins
        histories: list[Tensor] = []
        if self.has_watched:
            # Copied in any case: the next replay of a recording overwrites its results, and drafts keep their histories.
            kept = results[..., own:].clone(memory_format=torch.contiguous_format)
            histories = list(kept.view(torch.int64))
        return Visit(
            results[..., :own].tolist(), self.size, self.reading.errors, histories, self.hidden, frozenset(self.placing)
        )

    def _state(self) -> list[Tensor]:
        cells = [self.tokens, self.decided, self.pinned, self.confidence]
        return [*cells, self.unplaced, self.history, self.steps_left]

    def _keep_back(self, goes_on: Tensor, before: Sequence[Tensor]) -> None:
        """Undo the step for drafts that wait for the host."""
        kept = [
            torch.where(goes_on.view(-1, *[1] * (new.dim() - 1)), new, old)
            for new, old in zip(self._state(), before, strict=True)
        ]
        self.tokens, self.decided, self.pinned, self.confidence, self.unplaced, self.history, self.steps_left = kept

    def _may_go_on(self, actions: Tensor) -> Tensor:
        """[B] whether a draft's next step needs no decision of the host's: a position is open, no clause or reply is certain, and the guard
        wants no end."""
        classes = self.classes.of(self.tokens)
        prefix = extent.decided_prefix(self.decided, self.width)
        is_over = prefix > extent.reply_end(classes, self.width)
        if self.has_clauses:
            is_over |= self.stops_at_clause & (prefix >= extent.first_clause_end(classes, self.width))
        is_open = (self.open & ~self.decided).any(dim=1)
        return is_open & ~is_over & (actions != int(Action.FINISH_GREEDILY))

    def _window_tokens(self, ids: Tensor) -> Tensor:
        """[B, T] the windows' tokens with the canvases as they stand now."""
        lo, hi, lead = (column.unsqueeze(1) for column in self.live)
        place = torch.arange(ids.shape[1], device=self.device) - lead
        canvas = torch.where(self.decided, self.tokens, self.shared.mask)
        return torch.where((place >= lo) & (place < hi), canvas.gather(1, place.clamp(0, self.size - 1)), ids)

    # --- one step ---------------------------------------------------------------------------------------------------------

    def step(self, hidden: Tensor) -> Tensor:
        """Decide what the forward allows; [B, 4]: positions decided, forced ones among them, the guard's action, changes."""
        self.hidden = hidden
        flat = hidden.flatten(0, 1)
        if self.carried is not None:
            flat = torch.cat((flat, self.carried))
        scores = self._scores(self.reading.read(flat[self.source], self.tokens, self.decided, self.pinned, self.done))
        guess = torch.where(scores.token < 0, self.tokens, scores.token)
        self.tokens = torch.where(self.decided, self.tokens, guess)
        self.confidence = torch.where(self.decided, self.confidence, scores.probability)
        allowed, pinned = self._place_pins()
        before = self.decided.sum(dim=1)
        chosen, forced, had_text = self._select(scores, allowed)
        chosen = self._part(chosen)
        actions = self._watch(chosen)
        self.was_decided, self.decided = self.decided, self.decided | chosen
        forced_count = (forced & chosen).sum(dim=1) + self._close(allowed, had_text)
        self._revise(scores)
        committed = self.decided.sum(dim=1) - before
        if pinned is not None:
            committed = committed + pinned
        self.steps_left = self.steps_left - 1
        self.done += 1
        nothing = torch.zeros((), dtype=torch.int64, device=self.device)
        edited = [nothing if draft.reviser is None else draft.reviser.edited for draft in self.drafts]
        return torch.stack((committed, forced_count, actions, torch.stack(edited)), dim=1)

    def _scores(self, stats: CommitStats) -> Scores:
        """Rows to cells; -1 is the token of cells that were not looked at."""

        def dense(values: Tensor, base: Tensor) -> Tensor:
            return base.flatten().index_copy(0, self.reading.cells, values).view_as(base)

        nothing = torch.zeros_like(self.confidence)
        return Scores(
            dense(stats.token, torch.full_like(self.tokens, -1)),
            *(dense(values, nothing) for values in (stats.probability, stats.margin, stats.entropy)),
        )

    # --- the choice -------------------------------------------------------------------------------------------------------

    def _place_pins(self) -> tuple[Tensor, Tensor | None]:
        """Fix pins that have a clear place; [B, W] which cells may be decided beside them, and [B] how many were pinned."""
        allowed = torch.ones_like(self.decided)
        if not (self.placing or self.asking):
            return allowed, None
        # What was before the step may be wanted again.
        self.tokens, self.decided, self.pinned = self.tokens.clone(), self.decided.clone(), self.pinned.clone()
        self.confidence, self.unplaced, self.fails = self.confidence.clone(), self.unplaced.clone(), self.fails.clone()
        counts = torch.zeros(len(self.drafts), dtype=torch.int64, device=self.device)
        for row, placing in self.placing.items():
            count = placing.shape[0]
            placed = placing.place(
                self.reading.piece(row),
                self.reading.rows[row],
                Cells(self.tokens[row], self.confidence[row], self.decided[row], self.pinned[row]),
                self.open[row],
                self.unplaced[row, :count],
                self.steps_left[row],
            )
            cells = placed.cells
            self.tokens[row], self.confidence[row] = cells.tokens, cells.confidence
            self.decided[row], self.pinned[row] = cells.decided, cells.pinned
            self.unplaced[row, :count], self.fails[row] = placed.unplaced, placed.fails
            allowed[row], counts[row] = placed.allowed, placed.count
        if self.asking:
            counts = counts + staged(self._ask_for_places(allowed), self.device)
        return allowed, counts

    def _ask_for_places(self, allowed: Tensor) -> list[int]:
        """The same by the host, where the canvas is not open as a whole; how many were pinned per draft."""
        pinned = [0] * len(self.drafts)
        for row in self.asking:
            if row in self.reading.errors:
                continue
            draft, live, positions = self.drafts[row], self.lives[row], self.reading.wanted[row]
            canvas = draft.canvas
            tokens, sure = self.tokens[row].tolist(), self.confidence[row].tolist()
            for at in positions:
                canvas.guess(at, tokens[at], sure[at])
            try:
                cells, pinned[row] = consider_pins(draft, positions, self.reading.piece(row), live.steps_left)
            except Exception as error:  # this draft's alone
                self.reading.errors[row] = error
                continue
            allowed[row] = staged([at in cells for at in range(self.size)], self.device)
            if pinned[row]:
                padding = self.size - canvas.width
                self.tokens[row] = staged([*canvas.tokens, *[self.shared.mask] * padding], self.device)
                fixed = canvas.decided() + [True] * padding
                self.decided[row] = staged(fixed, self.device)
                is_pinned = [state is CellState.PINNED for state in canvas.states]
                self.pinned[row] = staged(is_pinned + [False] * padding, self.device)
        return pinned

    def _stop(self) -> Tensor:
        """[B] where the floor stops counting, as things stand."""
        classes = self.classes.of(self.tokens)
        end = extent.reply_end(classes, self.width)
        # An end that is held is `_close`'s matter; elsewhere the floor counts it, or nobody would decide one that is never sure.
        end = torch.where(self.holds_ends, end, torch.minimum(end + 1, self.width))
        stop = torch.where(self.stops_at_reply, end, self.width)
        if not self.has_clauses:
            return stop
        return torch.where(self.stops_at_clause, extent.first_clause_end(classes, self.width), stop)

    def _select(self, scores: Scores, allowed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the rules and the floor choose, and what only the floor asked for, [B, W] each; [B] whether the floor counted any text."""
        is_end = self.classes.is_end(self.tokens)
        open_cells = self.open & allowed & ~self.decided & ~(is_end & self.holds_ends.unsqueeze(1))
        stop = self._stop()
        urgent = open_cells & self.due & (self.at < stop.unsqueeze(1))
        # What lies behind the open cells counts only while the end is not in sight.
        waiting = urgent.sum(dim=1) + torch.where(stop <= self.due_hi, 0, self.beyond)
        floor = deadline_floors(waiting, self.steps_left)
        stable = torch.zeros_like(open_cells) if "stability" in self.rules.occurring else None
        all_now = torch.zeros(len(self.drafts), dtype=torch.bool, device=self.device)
        for row, draft in enumerate(self.drafts):
            if draft.reviser is None:
                continue
            cells, piece = self.reading.rows[row], self.reading.piece(row)
            found = draft.reviser.stable(piece, cells)
            if stable is not None and found is not None:
                stable[row, : len(found)] = found
            if draft.spec.options.early_commit:
                steps = draft.phase_steps + draft.steps_left_now
                all_now[row] = draft.reviser.decides_all(piece, cells, open_cells[row], draft.phase_steps, steps)
        selection = select(
            replace(scores, token=self.tokens), open_cells, urgent, floor, self.rules, stable, self._doubtful(scores)
        )
        return selection.chosen | (open_cells & all_now.unsqueeze(1)), selection.forced, urgent.any(dim=1)

    def _doubtful(self, scores: Scores) -> Tensor | None:
        """[B, W] figures and names that are not sure enough to be heard: a wrong word can be put right by the next, a wrong price cannot."""
        if not self.has_facts:
            return None
        is_unsure = scores.probability <= self.fact_threshold.unsqueeze(1)
        return is_unsure & self.classes.is_fact(self.tokens)

    def _part(self, chosen: Tensor) -> Tensor:
        """Choices that would make a banned phrase or a stutter together: one waits, or at the last step takes its second best token."""
        rules, logits = self.reading.rules, self.reading.logits
        if not self.parts:
            return chosen
        assert rules is not None and logits is not None
        clash = rules.processor.joint_conflicts(self.tokens, self.decided, chosen)
        if not self.may_end or self.done + 1 < self.count:
            return chosen & ~clash
        is_last = self.steps_left.unsqueeze(1) <= 1
        best = logits.argmax(dim=1, keepdim=True)
        others = logits.scatter(1, best, float("-inf")).index_fill_(1, self.shared.ends, float("-inf"))
        second = self.tokens.flatten().index_copy(0, self.reading.standing_cells, others.argmax(dim=1))
        self.tokens = torch.where(clash & is_last, second.view_as(self.tokens), self.tokens)
        return chosen & (is_last | ~clash)

    def _close(self, allowed: Tensor, had_text: Tensor) -> Tensor:
        """Decide the end-of-turn at the edge of the decided text where ends are held; [B] 1 where it was forced.

        An unsure end waits for a step that finds no text to decide: it was guessed while the last words were masked, and often is a word
        once they are known.
        """
        edge = extent.decided_prefix(self.decided, self.width)
        inside = edge.clamp_max(self.size - 1).unsqueeze(1)
        is_end = self.classes.is_end(self.tokens.gather(1, inside)).squeeze(1)
        may = (self.open & allowed & ~self.decided).gather(1, inside).squeeze(1)
        is_sure = self.confidence.gather(1, inside).squeeze(1) > self.threshold
        closes = self.holds_ends & is_end & may & (is_sure | ~had_text | (self.steps_left <= 1))
        self.decided = self.decided | (closes.unsqueeze(1) & (self.at == inside))
        return (closes & ~is_sure).long()

    # --- revision -----------------------------------------------------------------------------------------------------------

    def _watch(self, chosen: Tensor) -> Tensor:
        """Let the guard look at what the step would decide; [B] its actions. Takes ends it wants held out of `chosen`, in place."""
        actions = torch.zeros(len(self.drafts), dtype=torch.int64, device=self.device)
        if not self.has_watched:
            return actions
        is_end = self.classes.is_end(self.tokens) | (self.at >= self.width.unsqueeze(1))
        found, history = watch(
            History(self.history[:, :-1], self.history[:, -1]),
            self.tokens,
            self.decided | chosen,
            is_end,
            # What a plan leaves undecided at its end is the floor's matter: here only circles, repetitions and floods.
            torch.ones_like(actions),
            self.revises,
        )
        self.history = torch.cat((history.hashes, history.known.unsqueeze(1)), dim=1)
        actions = torch.where(self.is_watched, found, actions)
        holds = (actions == int(Action.HOLD_ENDS)) & (self.steps_left > 1)
        # A step decides something in any case: a flood of ends alone is let through.
        has_text = (chosen & ~is_end).any(dim=1)
        chosen &= ~(is_end & (holds & has_text).unsqueeze(1))
        return actions

    def _revise(self, scores: Scores) -> None:
        """Drafts whose options say so change what was decided before this step."""
        for row, (draft, live) in enumerate(zip(self.drafts, self.lives, strict=True)):
            if draft.reviser is None or not draft.spec.options.revises or draft.finishes_now:
                continue
            # Those behind the canvas's own width are not open.
            is_fixed = self.pinned[row] | (self.at < draft.emitted)
            seen = Seen(
                best=scores.token[row],
                probability=scores.probability[row],
                shadow=self._shadow(row, live) if live.shadow else None,
                was_masked=self.open[row] & ~self.was_decided[row],
                revisable=self.open[row] & self.was_decided[row] & ~is_fixed,
                step=draft.phase_steps,
                steps_left=live.steps_left,
            )
            changed = draft.reviser.revise(seen, self.tokens[row], self.decided[row], self.confidence[row])
            self.tokens[row], self.decided[row], self.confidence[row] = changed

    def _shadow(self, row: int, live: Live) -> Tensor:
        """[W] probability of the token at each live position given all the others; 1 elsewhere."""
        rows = self.hidden[row, live.shadow : live.shadow + live.hi - live.lo]
        probabilities = torch.softmax(self.shared.model.logits(rows).float(), dim=-1)
        held = probabilities.gather(1, self.tokens[row, live.lo : live.hi].unsqueeze(1)).squeeze(1)
        every = torch.ones(self.size, device=self.device)
        every[live.lo : live.hi] = held
        return every


def _wanted(draft: Draft, live: Live) -> list[int]:
    """Canvas positions whose logits a step needs: undecided ones, and decided ones that may be overwritten."""
    edits = draft.spec.options.edit_threshold is not None
    decided, states = draft.canvas.decided(), draft.canvas.states
    return [
        at
        for at in range(live.open_lo, live.open_hi)
        if not decided[at] or (edits and states[at] is CellState.COMMITTED)
    ] or [live.open_lo]


_STATES = {CellState.COMMITTED: 1, CellState.PINNED: PINNED}
"""Of decided cells, on the device."""


def _rule_columns(rules: RuleTable) -> tuple[Tensor, ...]:
    return rules.rule, rules.threshold, rules.factor, rules.entropy_bound, rules.seed


def _open_positions(draft: Draft, live: Live) -> list[int]:
    return list(range(live.open_lo, live.open_hi))
