"""One round of denoising: a forward over the windows of all drafts, then the choice of what each may decide.

Everything between the windows and the outcome stays on the device: guesses, the selection rule, the floor, the end of the reply, revision
of decided tokens and the countdown of steps. The host is visited once, at the end of a round, for all drafts together. Two things
need it earlier and say so: pins that have no place yet, and grammars.

Dimensions: B drafts, W canvas positions, N rows of logits, T window tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dllm import extent
from dllm.draft import Draft, Live
from dllm.drafts import CellState
from dllm.errors import NoTokenLeftError
from dllm.extent import TokenClasses
from dllm.guard import Action, History, watch
from dllm.models.family import Network
from dllm.pins import consider_pins, pin_openings
from dllm.revision import Seen
from dllm.sampling import ban
from dllm.selection import RuleTable, Scores, select
from dllm.spec import ModelSpec
from dllm.staging import staged
from dllm_kernels import commit_from_logits


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did to one draft."""

    committed: int
    """Positions decided, less those masked again."""
    forced: int


@dataclass(slots=True)
class _State:
    """All canvases of a round. [B, W] each; cells behind a draft's own width are decided and hold the mask token."""

    tokens: Tensor
    decided: Tensor
    confidence: Tensor
    width: Tensor
    """[B]"""


@dataclass(frozen=True, slots=True)
class _Region:
    """What the round may touch, per draft, on the device."""

    open: Tensor
    """[B, W] bool."""
    due: Tensor
    """[B, W] bool: counted by the floor, as far as the stop allows."""
    due_hi: Tensor
    """[B]"""
    beyond: Tensor
    steps_left: Tensor
    stops_at_clause: Tensor
    stops_at_reply: Tensor
    holds_ends: Tensor
    threshold: Tensor


class Denoiser:
    """Runs the denoising steps of drafts that share a model."""

    def __init__(self, model: Network, spec: ModelSpec, classes: TokenClasses) -> None:
        self._model, self._spec, self._classes = model, spec, classes
        self._device = next(iter(model.parameters())).device  # type: ignore[attr-defined]
        self._mask = spec.special.mask if spec.special.mask is not None else 0
        self._ends = staged(spec.special.ends, self._device)

    def advance(self, drafts: Sequence[Draft], lives: Sequence[Live], hidden: Tensor) -> list[Outcome | Exception]:
        """Decide what the forward allows.

        Args:
            hidden: [B, T, E], the forward's output, in the order of the drafts.

        Returns:
            Per draft what happened, or its own error: the others' canvases are untouched by it.
        """
        state, region = self._load(drafts), self._region(drafts, lives)
        wanted = [self._wanted(draft, live) for draft, live in zip(drafts, lives, strict=True)]
        logits = self._logits(lives, wanted, hidden)
        errors: dict[int, Exception] = {}
        pieces = torch.split(logits, [len(positions) for positions in wanted])
        tokens, probability, margin, entropy = self._guess(drafts, wanted, pieces, state, logits, errors)
        guess, scores = self._spread(state, wanted, tokens, probability, margin, entropy)
        state.tokens = torch.where(state.decided, state.tokens, guess)
        state.confidence = torch.where(state.decided, state.confidence, scores.probability)
        allowed, pinned = self._pins(drafts, lives, wanted, pieces, state, errors)
        before = state.decided.sum(dim=1)
        chosen, forced = self._select(drafts, wanted, pieces, state, scores, region, allowed)
        chosen = self._part(drafts, lives, wanted, pieces, state, chosen)
        actions = self._watch(drafts, lives, state, chosen)
        was_decided = state.decided
        state.decided = state.decided | chosen
        forced = (forced & chosen).sum(dim=1) + self._close(state, region, chosen, allowed)
        self._revise(drafts, lives, scores, state, region, was_decided, hidden)
        committed = state.decided.sum(dim=1) - before + staged(pinned, self._device)
        return self._store(drafts, state, committed, forced, actions, errors)

    # --- to the device --------------------------------------------------------------------------------------------------

    def _load(self, drafts: Sequence[Draft]) -> _State:
        width = max(draft.canvas.width for draft in drafts)

        def rows(values: Sequence[Sequence[float | bool]], fill: float | bool) -> Tensor:
            return staged([[*row, *[fill] * (width - len(row))] for row in values], self._device)

        return _State(
            rows([draft.canvas.tokens for draft in drafts], self._mask),
            rows([[draft.canvas.is_decided(at) for at in range(draft.canvas.width)] for draft in drafts], True),
            rows([draft.canvas.confidence for draft in drafts], 0.0),
            staged([draft.canvas.width for draft in drafts], self._device),
        )

    def _region(self, drafts: Sequence[Draft], lives: Sequence[Live]) -> _Region:
        width = max(draft.canvas.width for draft in drafts)
        at = torch.arange(width, device=self._device)

        def column(values: Sequence[float | bool]) -> Tensor:
            return staged(values, self._device)

        lo, hi = column([live.open_lo for live in lives]), column([live.open_hi for live in lives])
        due = column([live.due_hi for live in lives])
        open_cells = (at >= lo.unsqueeze(1)) & (at < hi.unsqueeze(1))
        return _Region(
            open=open_cells,
            due=open_cells & (at < due.unsqueeze(1)),
            due_hi=due,
            beyond=column([live.beyond for live in lives]),
            steps_left=column([live.steps_left for live in lives]),
            stops_at_clause=column([live.stop == "clause" for live in lives]),
            stops_at_reply=column(
                [
                    live.stop == "reply" or draft.spec.options.hold_ends
                    for draft, live in zip(drafts, lives, strict=True)
                ]
            ),
            holds_ends=column([draft.spec.options.hold_ends for draft in drafts]),
            threshold=column([draft.plan.threshold for draft in drafts]),
        )

    # --- logits and guesses ---------------------------------------------------------------------------------------------

    @staticmethod
    def _wanted(draft: Draft, live: Live) -> list[int]:
        """Canvas positions whose logits this step needs: undecided ones, and decided ones that may be overwritten."""
        edits = draft.spec.options.edit_threshold is not None
        return [
            at
            for at in range(live.open_lo, live.open_hi)
            if not draft.canvas.is_decided(at) or (edits and draft.canvas.states[at] is CellState.COMMITTED)
        ] or [live.open_lo]

    def _logits(self, lives: Sequence[Live], wanted: Sequence[Sequence[int]], hidden: Tensor) -> Tensor:
        """[N, V] float32 of the wanted positions, in order."""
        shift, length = self._spec.logit_shift, hidden.shape[1]
        flat = hidden.flatten(0, 1)
        carried: list[Tensor] = []
        rows: list[int] = []
        for row, (live, positions) in enumerate(zip(lives, wanted, strict=True)):
            for at in positions:
                inside = live.lead + at - live.lo - shift
                if inside >= 0:
                    rows.append(row * length + inside)
                    continue
                assert live.carry is not None, "a shifted model needs the row before the window"
                rows.append(len(flat) + len(carried))
                carried.append(live.carry)
        if carried:
            flat = torch.cat((flat, torch.stack(carried)))
        return self._model.logits(flat[staged(rows, self._device)]).float()

    def _guess(
        self,
        drafts: Sequence[Draft],
        wanted: Sequence[Sequence[int]],
        pieces: Sequence[Tensor],
        state: _State,
        logits: Tensor,
        errors: dict[int, Exception],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Token, probability, margin and entropy of every wanted row."""
        for row, (draft, positions, piece) in enumerate(zip(drafts, wanted, pieces, strict=True)):
            draft.picker.process_on(piece, positions, state.tokens[row], state.decided[row])
            self._rule_out(draft, positions, piece)
        stats = commit_from_logits(logits)
        values = [stats.token, stats.probability, stats.margin, stats.entropy]
        at = 0
        for row, (draft, positions, piece) in enumerate(zip(drafts, wanted, pieces, strict=True)):
            part = slice(at, at + len(positions))
            at += len(positions)
            if draft.spec.options.temperature > 0 and draft.spec.constraint is None:
                drawn = draft.picker.sample(piece, positions, draft.steps)
                for value, own in zip(values, drawn, strict=True):
                    value[part] = own
            elif draft.spec.constraint is not None:
                try:
                    tokens, probabilities = draft.picker.complete(draft, piece, positions)
                except Exception as error:  # this draft's alone
                    errors[row] = error
                    continue
                values[0][part] = staged(tokens, self._device)
                values[1][part] = staged(probabilities, self._device)
        return values[0], values[1], values[2], values[3]

    def _rule_out(self, draft: Draft, positions: Sequence[int], piece: Tensor) -> None:
        """A reply is not empty, does not end before its last pin, and does not start a pin twice."""
        if draft.spec.constraint is not None:
            return
        first_end = max(1 if draft.spec.options.min_tokens else 0, draft.canvas.last_pin() + 1)
        early = sum(position < first_end for position in positions)
        if early:
            piece[:early].index_fill_(1, self._ends, float("-inf"))
        if draft.spec.pins:
            openings = pin_openings(draft)
            states, width = draft.canvas.states, draft.canvas.width
            beside = [
                row
                for row, at in enumerate(positions)
                if any(states[near] is CellState.PINNED for near in range(max(0, at - 2), min(width, at + 3)))
            ]
            ban(piece, [(row, token) for row in beside for token in openings])

    def _spread(
        self,
        state: _State,
        wanted: Sequence[Sequence[int]],
        token: Tensor,
        probability: Tensor,
        margin: Tensor,
        entropy: Tensor,
    ) -> tuple[Tensor, Scores]:
        """Rows to cells: what was guessed, and the scores of the cells that were looked at."""
        width = state.tokens.shape[1]
        cells = staged([row * width + at for row, positions in enumerate(wanted) for at in positions], self._device)

        def dense(values: Tensor, base: Tensor) -> Tensor:
            return base.flatten().index_copy(0, cells, values).view_as(base)

        nothing = torch.zeros_like(state.confidence)
        guess = dense(token, torch.full_like(state.tokens, -1))
        scores = Scores(guess, dense(probability, nothing), dense(margin, nothing), dense(entropy, nothing))
        return torch.where(guess < 0, state.tokens, guess), scores

    # --- the choice -------------------------------------------------------------------------------------------------------

    def _pins(
        self,
        drafts: Sequence[Draft],
        lives: Sequence[Live],
        wanted: Sequence[Sequence[int]],
        pieces: Sequence[Tensor],
        state: _State,
        errors: dict[int, Exception],
    ) -> tuple[Tensor, list[int]]:
        """Fix pins that have a clear place; which cells may be decided beside them, and how many were pinned per draft."""
        pinned = [0] * len(drafts)
        allowed = torch.ones_like(state.decided)
        for row, (draft, live, positions, piece) in enumerate(zip(drafts, lives, wanted, pieces, strict=True)):
            if not draft.unplaced or row in errors:
                continue
            canvas = draft.canvas
            tokens, sure = state.tokens[row].tolist(), state.confidence[row].tolist()
            for at in positions:
                canvas.guess(at, tokens[at], sure[at])
            try:
                cells, pinned[row] = consider_pins(draft, positions, piece, live.steps_left)
            except Exception as error:  # this draft's alone
                errors[row] = error
                continue
            width = state.tokens.shape[1]
            allowed[row] = staged([at in set(cells) for at in range(width)], self._device)
            if pinned[row]:
                fill = [0] * (width - canvas.width)
                state.tokens[row] = staged([*canvas.tokens, *fill], self._device)
                state.decided[row] |= staged(
                    [canvas.is_decided(at) for at in range(canvas.width)] + [True] * len(fill), self._device
                )
        return allowed, pinned

    def _stop(self, state: _State, region: _Region) -> Tensor:
        """[B] where the floor stops counting, as things stand."""
        classes = self._classes.of(state.tokens)
        stop = torch.where(region.stops_at_reply, extent.reply_end(classes, state.width), state.width)
        return torch.where(region.stops_at_clause, extent.first_clause_end(classes, state.width), stop)

    def _select(
        self,
        drafts: Sequence[Draft],
        wanted: Sequence[Sequence[int]],
        pieces: Sequence[Tensor],
        state: _State,
        scores: Scores,
        region: _Region,
        allowed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        is_end = self._classes.is_end(state.tokens)
        open_cells = region.open & allowed & ~state.decided & ~(is_end & region.holds_ends.unsqueeze(1))
        at = torch.arange(open_cells.shape[1], device=self._device)
        stop = self._stop(state, region)
        urgent = open_cells & region.due & (at < stop.unsqueeze(1))
        # What lies behind the open cells counts only while the end is not in sight.
        waiting = urgent.sum(dim=1) + torch.where(stop < region.due_hi, 0, region.beyond)
        floor = -(-waiting // region.steps_left)
        rules = RuleTable.of(
            [draft.spec.options for draft in drafts], [draft.plan.threshold for draft in drafts], self._device
        )
        stable = torch.zeros_like(open_cells) if "stability" in rules.occurring else None
        all_now = torch.zeros(len(drafts), dtype=torch.bool, device=self._device)
        for row, (draft, positions, piece) in enumerate(zip(drafts, wanted, pieces, strict=True)):
            if draft.reviser is None:
                continue
            cells = staged(positions, self._device)
            found = draft.reviser.stable(piece, cells)
            if stable is not None and found is not None:
                stable[row, : len(found)] = found
            if draft.spec.options.early_commit:
                steps = draft.phase_steps + draft.steps_left_now
                all_now[row] = draft.reviser.decides_all(piece, cells, open_cells[row], draft.phase_steps, steps)
        selection = select(replace(scores, token=state.tokens), open_cells, urgent, floor, rules, stable)
        return selection.chosen | (open_cells & all_now.unsqueeze(1)), selection.forced

    def _part(
        self,
        drafts: Sequence[Draft],
        lives: Sequence[Live],
        wanted: Sequence[Sequence[int]],
        pieces: Sequence[Tensor],
        state: _State,
        chosen: Tensor,
    ) -> Tensor:
        """Choices that would make a banned phrase or a stutter together: one waits, or at the last step takes its second best token."""
        chosen = chosen.clone()
        for row, (draft, live, positions, piece) in enumerate(zip(drafts, lives, wanted, pieces, strict=True)):
            options = draft.spec.options
            if draft.spec.constraint is not None or not (options.no_stutter or options.banned):
                continue
            clash = draft.picker.conflicts(state.tokens[row], state.decided[row], chosen[row])
            if live.steps_left > 1:
                chosen[row] &= ~clash
                continue
            best = piece.argmax(dim=1, keepdim=True)
            others = piece.scatter(1, best, float("-inf")).index_fill_(1, self._ends, float("-inf"))
            cells = staged(positions, self._device)
            second = state.tokens[row].index_copy(0, cells, others.argmax(dim=1))
            state.tokens[row] = torch.where(clash, second, state.tokens[row])
        return chosen

    def _close(self, state: _State, region: _Region, chosen: Tensor, allowed: Tensor) -> Tensor:
        """Decide the end-of-turn at the edge of the decided text where ends are held; [B] 1 where it was forced."""
        edge = extent.decided_prefix(state.decided, state.width)
        inside = edge.clamp_max(state.tokens.shape[1] - 1).unsqueeze(1)
        is_end = self._classes.is_end(state.tokens.gather(1, inside)).squeeze(1)
        may = (region.open & allowed & ~state.decided).gather(1, inside).squeeze(1)
        is_sure = state.confidence.gather(1, inside).squeeze(1) > region.threshold
        at = torch.arange(chosen.shape[1], device=self._device)
        text_left = (
            region.due
            & ~state.decided
            & ~self._classes.is_end(state.tokens)
            & (at < self._stop(state, region).unsqueeze(1))
        ).any(dim=1)
        closes = region.holds_ends & is_end & may & (is_sure | ~text_left | (region.steps_left <= 1))
        state.decided = state.decided | (closes.unsqueeze(1) & (at == inside))
        return (closes & ~is_sure).long()

    # --- revision and the way back ----------------------------------------------------------------------------------------

    def _revise(
        self,
        drafts: Sequence[Draft],
        lives: Sequence[Live],
        scores: Scores,
        state: _State,
        region: _Region,
        was_decided: Tensor,
        hidden: Tensor,
    ) -> None:
        """Drafts whose options say so change what was decided before this step."""
        for row, (draft, live) in enumerate(zip(drafts, lives, strict=True)):
            if draft.reviser is None or not draft.spec.options.revises or draft.finishes_now:
                continue
            fixed = [cell is CellState.PINNED for cell in draft.canvas.states]
            fixed[: draft.emitted] = [True] * draft.emitted
            fixed += [True] * (state.tokens.shape[1] - draft.canvas.width)
            seen = Seen(
                best=scores.token[row],
                probability=scores.probability[row],
                shadow=self._shadow(live, state.tokens[row], hidden[row]) if live.shadow else None,
                was_masked=region.open[row] & ~was_decided[row],
                revisable=region.open[row] & was_decided[row] & ~staged(fixed, self._device),
                step=draft.phase_steps,
                steps_left=live.steps_left,
            )
            changed = draft.reviser.revise(seen, state.tokens[row], state.decided[row], state.confidence[row])
            state.tokens[row], state.decided[row], state.confidence[row] = changed

    def _shadow(self, live: Live, tokens: Tensor, hidden: Tensor) -> Tensor:
        """[W] probability of the token at each live position given all the others; 1 elsewhere."""
        rows = hidden[live.shadow : live.shadow + live.hi - live.lo]
        probabilities = torch.softmax(self._model.logits(rows).float(), dim=-1)
        held = probabilities.gather(1, tokens[live.lo : live.hi].unsqueeze(1)).squeeze(1)
        every = torch.ones(tokens.shape, device=self._device)
        every[live.lo : live.hi] = held
        return every

    def _watch(self, drafts: Sequence[Draft], lives: Sequence[Live], state: _State, chosen: Tensor) -> Tensor:
        """Let the guard look at what the step would decide; [B] its actions, and choices of ends are put off where it says so."""
        actions = torch.zeros(len(drafts), dtype=torch.int64, device=self._device)
        watched = [row for row, draft in enumerate(drafts) if draft.history is not None]
        if not watched:
            return actions
        rows = staged(watched, self._device)
        histories = [draft.history for draft in drafts if draft.history is not None]
        history = History(torch.cat([one.hashes for one in histories]), torch.cat([one.known for one in histories]))
        at = torch.arange(state.tokens.shape[1], device=self._device)
        is_end = self._classes.is_end(state.tokens) | (at >= state.width.unsqueeze(1))
        found, history = watch(
            history,
            state.tokens[rows],
            (state.decided | chosen)[rows],
            is_end[rows],
            # What a plan leaves undecided at its end is the floor's matter: here only circles, repetitions and floods.
            torch.ones(len(watched), dtype=torch.int64, device=self._device),
            staged(
                [drafts[row].spec.options.revises and not drafts[row].spec.options.remask_eta for row in watched],
                self._device,
            ),
        )
        for index, row in enumerate(watched):
            drafts[row].history = History(history.hashes[index : index + 1], history.known[index : index + 1])
        actions = actions.index_copy(0, rows, found)
        may_wait = staged([live.steps_left > 1 for live in lives], self._device)
        holds = (actions == int(Action.HOLD_ENDS)) & may_wait
        # The most confident choice stays, so that the step decides something: a flood of ends alone is let through.
        has_text = (chosen & ~is_end).any(dim=1)
        chosen &= ~(is_end & (holds & has_text).unsqueeze(1))
        return actions

    def _store(
        self,
        drafts: Sequence[Draft],
        state: _State,
        committed: Tensor,
        forced: Tensor,
        actions: Tensor,
        errors: dict[int, Exception],
    ) -> list[Outcome | Exception]:
        """The one visit to the host: canvases and counts."""
        nothing = torch.zeros((), dtype=torch.int64, device=self._device)
        edited = torch.stack([nothing if draft.reviser is None else draft.reviser.edited for draft in drafts])
        counts = torch.stack((committed, forced, actions, edited), dim=1).double()
        cells = (state.tokens.double(), state.decided.double(), state.confidence.double(), counts)
        packed = torch.cat(cells, dim=1).tolist()
        width = state.tokens.shape[1]
        outcomes: list[Outcome | Exception] = []
        for row, draft in enumerate(drafts):
            if row in errors:
                outcomes.append(errors[row])
                continue
            values = packed[row]
            canvas = draft.canvas
            for at in range(canvas.width):
                if canvas.states[at] is CellState.PINNED:
                    continue
                canvas.put(at, int(values[at]), values[2 * width + at], is_decided=bool(values[width + at]))
            decided, forced_here, action, changed = map(int, values[3 * width :])
            draft.is_settled = not changed or draft.steps_left_now <= 1
            if action == Action.FINISH_GREEDILY and not draft.finishes_now:
                draft.finishes_now, draft.guards = True, draft.guards + 1
            elif action == Action.HOLD_ENDS:
                draft.guards += 1
            ruled_out = next(
                (at for at in range(canvas.width) if canvas.is_decided(at) and canvas.tokens[at] == canvas.table.mask),
                None,
            )
            outcomes.append(Outcome(decided, forced_here) if ruled_out is None else NoTokenLeftError(ruled_out))
        return outcomes
