"""One round of denoising: a forward over the windows of all drafts, then the choice of what each may decide.

Everything between the windows and the outcome stays on the device: guesses, the selection rule, the floor, the end of the reply, revision
of decided tokens and the countdown of steps. The host is visited once, at the end of a round, for all drafts together. Two things
need it earlier and say so: pins that have no place yet, and grammars.

Where kernels run, logits stand in memory only for drafts whose rules look at them; for the others head and commit are one launch.

Dimensions: B drafts, W canvas positions, N rows of logits, T window tokens, E hidden size, V vocabulary.
"""

from __future__ import annotations

import itertools
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
from dllm.options import DecodeOptions
from dllm.pins import consider_pins, continuing, pin_openings
from dllm.process import Vocabulary, draw_seeds
from dllm.revision import Seen
from dllm.sampling import ban
from dllm.schedule import deadline_floors
from dllm.selection import RuleTable, Scores, select
from dllm.spec import ModelSpec
from dllm.staging import staged
from dllm_kernels import CommitStats, Held, commit_from_logits, head_commit
from dllm_kernels.choose import runs_kernels
from dllm_kernels.commit_from_logits.contract import empty_stats


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did to one draft."""

    committed: int
    """Positions decided, less those masked again."""
    forced: int


class Denoiser:
    """Runs the denoising steps of drafts that share a model."""

    def __init__(self, model: Network, spec: ModelSpec, classes: TokenClasses, vocabulary: Vocabulary) -> None:
        self.model, self.classes, self.vocabulary = model, classes, vocabulary
        self.device = next(iter(model.parameters())).device  # type: ignore[attr-defined]
        self.mask = spec.special.mask if spec.special.mask is not None else 0
        self.shift = spec.logit_shift
        self.ends = staged(spec.special.ends, self.device)
        self._rules: tuple[list[DecodeOptions], list[float], RuleTable] | None = None

    def advance(self, drafts: Sequence[Draft], lives: Sequence[Live], hidden: Tensor) -> list[Outcome | Exception]:
        """Decide what the forward allows.

        Args:
            hidden: [B, T, E], the forward's output, in the order of the drafts.

        Returns:
            Per draft what happened, or its own error: the others' canvases are untouched by it.
        """
        return _Round(self, drafts, lives, hidden).run()

    def rules_of(self, drafts: Sequence[Draft]) -> RuleTable:
        """The drafts' rules on the device; made anew when the company or a plan changes."""
        options, thresholds = [draft.spec.options for draft in drafts], [draft.plan.threshold for draft in drafts]
        if self._rules is None or self._rules[:2] != (options, thresholds):
            self._rules = (options, thresholds, RuleTable.of(options, thresholds, self.device))
        return self._rules[2]


class _Round:
    """One round's canvases on the device, from the forward's output to what goes back to the host.

    Cells are [B, W]; those behind a draft's own width count as decided and hold the mask token.
    """

    def __init__(self, shared: Denoiser, drafts: Sequence[Draft], lives: Sequence[Live], hidden: Tensor) -> None:
        self.shared, self.drafts, self.lives, self.hidden = shared, drafts, lives, hidden
        self.device, self.classes = shared.device, shared.classes
        self.errors: dict[int, Exception] = {}
        canvases = [draft.canvas for draft in drafts]
        self.size = max(canvas.width for canvas in canvases)
        self.tokens = self._cells([canvas.tokens for canvas in canvases], shared.mask)
        self.decided = self._cells([[canvas.is_decided(at) for at in range(canvas.width)] for canvas in canvases], True)
        self.confidence = self._cells([canvas.confidence for canvas in canvases], 0.0)
        self.was_decided = self.decided

        self.at = torch.arange(self.size, device=self.device)
        options = [draft.spec.options for draft in drafts]
        # One transfer for all that is counted: each costs as much as a few operations.
        counted = [
            (canvas.width, live.open_lo, live.open_hi, live.due_hi, live.beyond, live.steps_left)
            for canvas, live in zip(canvases, lives, strict=True)
        ]
        columns = staged(list(zip(*counted, strict=True)), self.device)
        self.width, lo, hi, self.due_hi, self.beyond, self.steps_left = columns.unbind()
        self.open = (self.at >= lo.unsqueeze(1)) & (self.at < hi.unsqueeze(1))
        self.due = self.open & (self.at < self.due_hi.unsqueeze(1))
        flags = [
            (one.hold_ends, live.stop == "clause", one.hold_ends or live.stop == "reply")
            for one, live in zip(options, lives, strict=True)
        ]
        switches = staged(list(zip(*flags, strict=True)), self.device)
        self.holds_ends, self.stops_at_clause, self.stops_at_reply = switches.unbind()
        self.threshold = staged([draft.plan.threshold for draft in drafts], self.device)

        self.wanted = [_wanted(draft, live) for draft, live in zip(drafts, lives, strict=True)]
        """Canvas positions per draft whose logits this step looks at."""
        self.rows = [staged(positions, self.device) for positions in self.wanted]
        """The same on the device."""
        self.inputs = self._inputs()
        """[N, E], of the wanted positions in order."""
        head = shared.model.head()
        self.head = head if head is not None and runs_kernels(self.inputs, head.weight) else None
        self.is_fused = [self.head is not None and not _reads_logits(draft) for draft in drafts]
        """Per draft whether its logits are needed nowhere."""
        self.pieces = self._logits()
        """Per draft [n, V] float32 of its wanted positions; none for those that are fused."""

    def _cells(self, values: Sequence[Sequence[float | bool]], fill: float | bool) -> Tensor:
        return staged([[*row, *[fill] * (self.size - len(row))] for row in values], self.device)

    def run(self) -> list[Outcome | Exception]:
        scores = self._scores(self._guess())
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
        committed = self.decided.sum(dim=1) - before + staged(pinned, self.device)
        return self._store(committed, forced_count, actions)

    # --- logits and guesses ---------------------------------------------------------------------------------------------

    def _inputs(self) -> Tensor:
        length, flat = self.hidden.shape[1], self.hidden.flatten(0, 1)
        carried: list[Tensor] = []
        rows: list[int] = []
        for row, (live, positions) in enumerate(zip(self.lives, self.wanted, strict=True)):
            for at in positions:
                inside = live.lead + at - live.lo - self.shared.shift
                if inside >= 0:
                    rows.append(row * length + inside)
                    continue
                assert live.carry is not None, "a shifted model needs the row before the window"
                rows.append(len(flat) + len(carried))
                carried.append(live.carry)
        if carried:
            flat = torch.cat((flat, torch.stack(carried)))
        return flat[staged(rows, self.device)]

    def _logits(self) -> list[Tensor]:
        lengths = [len(positions) for positions in self.wanted]
        if not any(self.is_fused):
            return list(torch.split(self.shared.model.logits(self.inputs).float(), lengths))
        pieces = list(torch.split(self.inputs, lengths))
        looked_at = [row for row, is_fused in enumerate(self.is_fused) if not is_fused]
        logits = self.inputs.new_empty(0, 0, dtype=torch.float32)
        if looked_at:
            logits = self.shared.model.logits(torch.cat([pieces[row] for row in looked_at])).float()
        parts = iter(torch.split(logits, [lengths[row] for row in looked_at]))
        return [logits[:0] if is_fused else next(parts) for is_fused in self.is_fused]

    def _guess(self) -> CommitStats:
        """Token, probability, margin and entropy of every wanted row."""
        for row, (draft, positions, piece) in enumerate(zip(self.drafts, self.wanted, self.pieces, strict=True)):
            if not self.is_fused[row]:
                draft.picker.process_on(piece, self.rows[row], self.tokens[row], self.decided[row])
                self._rule_out(draft, positions, piece)
        stats = self._stats()
        first = 0
        for row, (draft, positions, piece) in enumerate(zip(self.drafts, self.wanted, self.pieces, strict=True)):
            part = slice(first, first + len(positions))
            first += len(positions)
            if self.is_fused[row]:
                continue
            if draft.spec.constraint is not None:
                try:
                    tokens, probabilities = draft.picker.complete(draft, piece, positions)
                except Exception as error:  # this draft's alone
                    self.errors[row] = error
                    continue
                stats.token[part] = staged(tokens, self.device)
                stats.probability[part] = staged(probabilities, self.device)
            elif draft.spec.options.temperature > 0:
                drawn = draft.picker.sample(piece, self.rows[row], draft.steps)
                for value, own in zip(stats, drawn, strict=True):
                    value[part] = own
        return stats

    def _stats(self) -> CommitStats:
        """Of the rows as their logits stand, at temperature 0; where head and commit are one, as they are drawn."""
        if not any(self.is_fused):
            return commit_from_logits(self.pieces[0] if len(self.pieces) == 1 else torch.cat(self.pieces))
        stats = empty_stats(self.inputs)
        ends = itertools.accumulate(map(len, self.wanted))
        places = [range(end - len(positions), end) for end, positions in zip(ends, self.wanted, strict=True)]

        def put(rows: Sequence[int], found: CommitStats) -> None:
            at = staged([place for row in rows for place in places[row]], self.device)
            for whole, part in zip(stats, found, strict=True):
                whole.index_copy_(0, at, part)

        looked_at = [row for row, is_fused in enumerate(self.is_fused) if not is_fused]
        if looked_at:
            put(looked_at, commit_from_logits(torch.cat([self.pieces[row] for row in looked_at])))
        together: dict[float, list[int]] = {}
        for row, is_fused in enumerate(self.is_fused):
            if is_fused:
                together.setdefault(self.drafts[row].spec.options.temperature, []).append(row)
        for temperature, rows in together.items():
            put(rows, self._commit_at_the_head(rows, temperature))
        return stats

    def _commit_at_the_head(self, rows: Sequence[int], temperature: float) -> CommitStats:
        assert self.head is not None
        inputs = torch.split(self.inputs, [len(positions) for positions in self.wanted])
        held: list[bool] = []
        for row in rows:
            draft = self.drafts[row]
            first_end = max(draft.spec.options.min_tokens, draft.canvas.last_pin() + 1)
            held += [position < first_end for position in self.wanted[row]]
        seeds = [draw_seeds(self.drafts[row].spec.options.seed, self.drafts[row].steps, self.rows[row]) for row in rows]
        vocabulary = self.shared.vocabulary
        return head_commit(
            torch.cat([inputs[row] for row in rows]),
            self.head.weight,
            scale=self.head.scale,
            temperature=temperature,
            seed=torch.cat(seeds) if temperature > 0 else 0,
            forbidden=vocabulary.is_forbidden,
            held=Held(vocabulary.is_end, staged(held, self.device)) if any(held) else None,
        )

    def _rule_out(self, draft: Draft, positions: Sequence[int], piece: Tensor) -> None:
        """A reply is not empty, does not end before its last pin, does not start a pin twice and does not continue its last word or figure."""
        if draft.spec.constraint is not None:
            return
        first_end = max(1 if draft.spec.options.min_tokens else 0, draft.canvas.last_pin() + 1)
        early = sum(position < first_end for position in positions)
        if early:
            piece[:early].index_fill_(1, self.shared.ends, float("-inf"))
        if draft.spec.pins:
            openings = pin_openings(draft)
            states, width = draft.canvas.states, draft.canvas.width
            beside = [
                row
                for row, at in enumerate(positions)
                if any(states[near] is CellState.PINNED for near in range(max(0, at - 2), min(width, at + 3)))
            ]
            ban(piece, [(row, token) for row in beside for token in openings])
            if draft.spec.unpinned is not None and draft.canvas.last_pin() >= 0:
                piece[:, draft.spec.unpinned] = float("-inf")  # What holds a pin is not what may hold none.
            for row, at in enumerate(positions):
                for tokens in continuing(draft.canvas, at, self.classes):
                    piece[row].index_fill_(0, tokens, float("-inf"))

    def _scores(self, stats: CommitStats) -> Scores:
        """Rows to cells; -1 is the token of cells that were not looked at."""
        cells = torch.cat([row * self.size + positions for row, positions in enumerate(self.rows)])

        def dense(values: Tensor, base: Tensor) -> Tensor:
            return base.flatten().index_copy(0, cells, values).view_as(base)

        nothing = torch.zeros_like(self.confidence)
        return Scores(
            dense(stats.token, torch.full_like(self.tokens, -1)),
            *(dense(values, nothing) for values in (stats.probability, stats.margin, stats.entropy)),
        )

    # --- the choice -------------------------------------------------------------------------------------------------------

    def _place_pins(self) -> tuple[Tensor, list[int]]:
        """Fix pins that have a clear place; which cells may be decided beside them, and how many were pinned per draft."""
        pinned = [0] * len(self.drafts)
        allowed = torch.ones_like(self.decided)
        for row, (draft, live, positions) in enumerate(zip(self.drafts, self.lives, self.wanted, strict=True)):
            if not draft.unplaced or row in self.errors:
                continue
            canvas = draft.canvas
            tokens, sure = self.tokens[row].tolist(), self.confidence[row].tolist()
            for at in positions:
                canvas.guess(at, tokens[at], sure[at])
            try:
                cells, pinned[row] = consider_pins(draft, positions, self.pieces[row], live.steps_left)
            except Exception as error:  # this draft's alone
                self.errors[row] = error
                continue
            allowed[row] = staged([at in set(cells) for at in range(self.size)], self.device)
            if pinned[row]:
                padding = self.size - canvas.width
                self.tokens[row] = staged([*canvas.tokens, *[self.shared.mask] * padding], self.device)
                fixed = [canvas.is_decided(at) for at in range(canvas.width)] + [True] * padding
                self.decided[row] = staged(fixed, self.device)
        return allowed, pinned

    def _stop(self) -> Tensor:
        """[B] where the floor stops counting, as things stand."""
        classes = self.classes.of(self.tokens)
        end = extent.reply_end(classes, self.width)
        # An end that is held is `_close`'s matter; elsewhere the floor counts it, or nobody would decide one that is never sure.
        end = torch.where(self.holds_ends, end, torch.minimum(end + 1, self.width))
        stop = torch.where(self.stops_at_reply, end, self.width)
        if all(live.stop != "clause" for live in self.lives):
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
        rules = self.shared.rules_of(self.drafts)
        stable = torch.zeros_like(open_cells) if "stability" in rules.occurring else None
        all_now = torch.zeros(len(self.drafts), dtype=torch.bool, device=self.device)
        for row, (draft, cells, piece) in enumerate(zip(self.drafts, self.rows, self.pieces, strict=True)):
            if draft.reviser is None:
                continue
            found = draft.reviser.stable(piece, cells)
            if stable is not None and found is not None:
                stable[row, : len(found)] = found
            if draft.spec.options.early_commit:
                steps = draft.phase_steps + draft.steps_left_now
                all_now[row] = draft.reviser.decides_all(piece, cells, open_cells[row], draft.phase_steps, steps)
        selection = select(
            replace(scores, token=self.tokens), open_cells, urgent, floor, rules, stable, self._doubtful(scores)
        )
        return selection.chosen | (open_cells & all_now.unsqueeze(1)), selection.forced, urgent.any(dim=1)

    def _doubtful(self, scores: Scores) -> Tensor | None:
        """[B, W] figures and names that are not sure enough to be heard: a wrong word can be put right by the next, a wrong price cannot."""
        thresholds = [draft.plan.fact_threshold for draft in self.drafts]
        if not any(thresholds):
            return None
        is_unsure = scores.probability <= staged(thresholds, self.device).unsqueeze(1)
        return is_unsure & self.classes.is_fact(self.tokens)

    def _part(self, chosen: Tensor) -> Tensor:
        """Choices that would make a banned phrase or a stutter together: one waits, or at the last step takes its second best token."""
        chosen = chosen.clone()
        for row, (draft, live, cells, piece) in enumerate(
            zip(self.drafts, self.lives, self.rows, self.pieces, strict=True)
        ):
            options = draft.spec.options
            if draft.spec.constraint is not None or not (options.no_stutter or options.banned):
                continue
            clash = draft.picker.conflicts(self.tokens[row], self.decided[row], chosen[row])
            if live.steps_left > 1:
                chosen[row] &= ~clash
                continue
            best = piece.argmax(dim=1, keepdim=True)
            others = piece.scatter(1, best, float("-inf")).index_fill_(1, self.shared.ends, float("-inf"))
            second = self.tokens[row].index_copy(0, cells, others.argmax(dim=1))
            self.tokens[row] = torch.where(clash, second, self.tokens[row])
        return chosen

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
        watched = [row for row, draft in enumerate(self.drafts) if draft.history is not None]
        if not watched:
            return actions
        rows = staged(watched, self.device)
        histories = [draft.history for draft in self.drafts if draft.history is not None]
        history = History(torch.cat([one.hashes for one in histories]), torch.cat([one.known for one in histories]))
        is_end = self.classes.is_end(self.tokens) | (self.at >= self.width.unsqueeze(1))
        options = [self.drafts[row].spec.options for row in watched]
        found, history = watch(
            history,
            self.tokens[rows],
            (self.decided | chosen)[rows],
            is_end[rows],
            # What a plan leaves undecided at its end is the floor's matter: here only circles, repetitions and floods.
            torch.ones(len(watched), dtype=torch.int64, device=self.device),
            staged([one.revises and not one.remask_eta for one in options], self.device),
        )
        for index, row in enumerate(watched):
            self.drafts[row].history = History(history.hashes[index : index + 1], history.known[index : index + 1])
        actions = actions.index_copy(0, rows, found)
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
            fixed = [cell is CellState.PINNED for cell in draft.canvas.states]
            fixed[: draft.emitted] = [True] * draft.emitted
            fixed += [True] * (self.size - draft.canvas.width)
            seen = Seen(
                best=scores.token[row],
                probability=scores.probability[row],
                shadow=self._shadow(row, live) if live.shadow else None,
                was_masked=self.open[row] & ~self.was_decided[row],
                revisable=self.open[row] & self.was_decided[row] & ~staged(fixed, self.device),
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

    # --- the way back -------------------------------------------------------------------------------------------------------

    def _store(self, committed: Tensor, forced: Tensor, actions: Tensor) -> list[Outcome | Exception]:
        """The one visit to the host: canvases and counts."""
        nothing = torch.zeros((), dtype=torch.int64, device=self.device)
        edited = torch.stack([nothing if draft.reviser is None else draft.reviser.edited for draft in self.drafts])
        counts = torch.stack((committed, forced, actions, edited), dim=1)
        cells = (self.tokens, self.decided, self.confidence, counts)
        packed = torch.cat([part.double() for part in cells], dim=1).tolist()
        return [
            self.errors[row] if row in self.errors else _keep(draft, packed[row], self.size)
            for row, draft in enumerate(self.drafts)
        ]


def _reads_logits(draft: Draft) -> bool:
    """Whether any of the draft's rules looks at or changes logits, beside what is forbidden to all and ends that come too early."""
    options = draft.spec.options
    is_filtered = options.temperature > 0 and (options.top_k > 0 or options.top_p < 1.0)
    changes = options.repetition_penalty != 1.0 or options.logit_bias or options.target_tokens or options.banned
    has_rules = draft.spec.pins or draft.spec.constraint is not None or draft.reviser is not None
    return bool(is_filtered or changes or options.no_stutter or has_rules)


def _wanted(draft: Draft, live: Live) -> list[int]:
    """Canvas positions whose logits a step needs: undecided ones, and decided ones that may be overwritten."""
    edits = draft.spec.options.edit_threshold is not None
    return [
        at
        for at in range(live.open_lo, live.open_hi)
        if not draft.canvas.is_decided(at) or (edits and draft.canvas.states[at] is CellState.COMMITTED)
    ] or [live.open_lo]


def _keep(draft: Draft, values: Sequence[float], size: int) -> Outcome | Exception:
    """Put a round's result into the draft: tokens, decided and confidence of `size` cells each, then the counts."""
    canvas = draft.canvas
    for at in range(canvas.width):
        if canvas.states[at] is not CellState.PINNED:
            canvas.put(at, int(values[at]), values[2 * size + at], is_decided=bool(values[size + at]))
    committed, forced, action, changed = map(int, values[3 * size :])
    draft.is_settled = not changed or draft.steps_left_now <= 1
    if action == Action.FINISH_GREEDILY and not draft.finishes_now:
        draft.finishes_now, draft.guards = True, draft.guards + 1
    elif action == Action.HOLD_ENDS:
        draft.guards += 1
    for at in range(canvas.width):
        if canvas.is_decided(at) and canvas.tokens[at] == canvas.table.mask:
            return NoTokenLeftError(at)
    return Outcome(committed, forced)
