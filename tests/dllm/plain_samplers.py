"""Samplers as the papers write them: one full forward over everything per step, no cache, no batch, explicit masks, plain Python.

What the engine must equal token for token. Written from the definitions, not from the engine.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dllm.models.family import Network
from dllm.spec import ModelSpec


def seen(spec: ModelSpec, total: int, live: int) -> Tensor:
    """[total, total] bool: may query i look at key j? `live` is where the canvas begins."""
    mask = torch.zeros(total, total, dtype=torch.bool)
    for i in range(total):
        for j in range(total):
            match spec.mask_kind:
                case "full":
                    mask[i, j] = True
                case "block_causal":
                    mask[i, j] = j // spec.block <= i // spec.block
                case _:
                    mask[i, j] = j <= i if i < live else True
    return mask


def probabilities(network: Network, tokens: Sequence[int], live: int) -> Tensor:
    """[total, V] at the position each row is for (shift undone), never the mask token, at temperature 1."""
    spec, total = network.spec, len(tokens)
    hidden = network(
        torch.tensor([tokens]), torch.arange(total).unsqueeze(0), seen(spec, total, live).view(1, 1, total, total)
    )
    logits = network.logits(hidden[0]).double()
    if spec.logit_shift:
        logits = torch.cat((logits[:1], logits[:-1]))
    logits[:, [token for token in (spec.special.mask, *spec.special.forbidden) if token is not None]] = -torch.inf
    return torch.softmax(logits, dim=-1)


def pick(confidence: dict[int, float], rule: str, threshold: float, due: int) -> list[int]:
    """Positions to commit: above the threshold, and at least `due` (at least one), the most confident first, ties left."""
    order = sorted(confidence, key=lambda at: (-confidence[at], at))
    wanted = [at for at in order if rule == "threshold" and confidence[at] > threshold]
    return sorted({*wanted, *order[: max(due, 1)]}) if len(wanted) < max(due, 1) else sorted(wanted)


def blocks(
    network: Network,
    prompt: Sequence[int],
    width: int,
    rule: str,
    threshold: float,
    steps: int,
    block: int,
    origin: int,
) -> tuple[list[int], int]:
    """Blocks left to right until one holds an end with everything before it decided; the reply, and the forwards it took.

    Each block spreads what is left over the steps left: `ceil(masks left in the canvas / steps left)` at least per step.

    Args:
        block: Positions of a block.
        origin: Absolute position where the grid of blocks begins.
    """
    spec = network.spec
    mask = spec.special.mask
    assert mask is not None
    total = len(prompt) + width
    tokens = [*prompt, *[mask] * width]
    forwards = 0
    first = len(prompt)
    while first < total:
        stop = min((first - origin) // block * block + block + origin, total)
        # The model never sees beyond the live block, except where everything sees everything.
        length = total if spec.mask_kind == "full" else stop
        while mask in tokens[first:stop]:
            p = probabilities(network, tokens[:length], first)
            masked = [at for at in range(first, stop) if tokens[at] == mask]
            best = {at: int(p[at].argmax()) for at in masked}
            left = sum(token == mask for token in tokens)
            due = -(-left // max(steps - forwards, 1))
            for at in pick({at: float(p[at, best[at]]) for at in masked}, rule, threshold, due):
                tokens[at] = best[at]
            forwards += 1
        reply = tokens[len(prompt) : stop]
        ends = [at for at, token in enumerate(reply) if token in spec.special.ends]
        if ends:
            return reply[: ends[0]], forwards
        first = stop
    return tokens[len(prompt) :], forwards


def seeded_blocks(
    network: Network, prompt: Sequence[int], width: int, threshold: float, block: int
) -> tuple[list[int], int]:
    """Nemotron's block mode: the first token of a block is the causal pass's next token, the rest are denoised over causal text."""
    spec = network.spec
    mask = spec.special.mask
    assert mask is not None
    tokens, forwards = list(prompt), 0
    while len(tokens) < len(prompt) + width:
        causal = raw_next(network, tokens)
        live = [causal, *[mask] * (min(block, len(prompt) + width - len(tokens)) - 1)]
        while mask in live:
            p = probabilities(network, [*tokens, *live], len(tokens))
            masked = [at for at, token in enumerate(live) if token == mask]
            best = {at: int(p[len(tokens) + at].argmax()) for at in masked}
            for at in pick({at: float(p[len(tokens) + at, best[at]]) for at in masked}, "threshold", threshold, 1):
                live[at] = best[at]
            forwards += 1
        ends = [at for at, token in enumerate(live) if token in spec.special.ends]
        tokens += live[: ends[0]] if ends else live
        if ends:
            break
    return tokens[len(prompt) :], forwards


def shifted_blocks(network: Network, prompt: Sequence[int], width: int, threshold: float) -> list[int]:
    """Fast-dLLM v2: a block that begins at its border takes its first token from the row before it; sub-blocks left to right."""
    spec = network.spec
    mask, block, sub = spec.special.mask, spec.block, spec.sub_block or spec.block
    assert mask is not None
    total = len(prompt) + width
    tokens = [*prompt, *[mask] * width]
    first = len(prompt)
    while first < total:
        stop = min(first // block * block + block, total)
        if first % block == 0:
            tokens[first] = int(probabilities(network, [*tokens[:first], mask], first)[first].argmax())
        for begin in range(first // block * block, stop, sub):
            inside = range(max(begin, first), min(begin + sub, stop))
            while any(tokens[at] == mask for at in inside):
                p = probabilities(network, tokens[:stop], first)
                masked = [at for at in inside if tokens[at] == mask]
                best = {at: int(p[at].argmax()) for at in masked}
                for at in pick({at: float(p[at, best[at]]) for at in masked}, "threshold", threshold, 1):
                    tokens[at] = best[at]
        reply = tokens[len(prompt) : stop]
        ends = [at for at, token in enumerate(reply) if token in spec.special.ends]
        if ends:
            return reply[: ends[0]]
        first = stop
    return tokens[len(prompt) :]


def edited_blocks(
    network: Network, prompt: Sequence[int], width: int, threshold: float, edit_threshold: float
) -> tuple[list[int], int]:
    """LLaDA2.1: masks become tokens above one threshold, tokens become others above another, until a step changes nothing."""
    spec = network.spec
    mask, block = spec.special.mask, spec.block
    assert mask is not None
    total = len(prompt) + width
    tokens, forwards, first = [*prompt, *[mask] * width], 0, len(prompt)
    while first < total:
        stop = min(first // block * block + block, total)
        extra = 0
        while True:
            p = probabilities(network, tokens[:stop], first)
            forwards += 1
            best = {at: int(p[at].argmax()) for at in range(first, stop)}
            sure = {at: float(p[at, best[at]]) for at in best}
            masked = [at for at in best if tokens[at] == mask]
            extra = 0 if masked else extra + 1
            edits = [
                at
                for at in best
                if at not in masked and sure[at] > edit_threshold and best[at] != tokens[at] and extra < 16
            ]
            for at in [*edits, *(pick({at: sure[at] for at in masked}, "threshold", threshold, 1) if masked else [])]:
                tokens[at] = best[at]
            if not masked and not edits:
                break
        reply = tokens[len(prompt) : stop]
        ends = [at for at, token in enumerate(reply) if token in spec.special.ends]
        if ends:
            return reply[: ends[0]], forwards
        first = stop
    return tokens[len(prompt) :], forwards


def raw_next(network: Network, tokens: Sequence[int]) -> int:
    """Greedy next token of the causal mode."""
    spec, total = network.spec, len(tokens)
    causal = torch.ones(total, total, dtype=torch.bool).tril().view(1, 1, total, total)
    hidden = network(torch.tensor([list(tokens)]), torch.arange(total).unsqueeze(0), causal)
    logits = network.logits(hidden[0, -1]).double()
    logits[[token for token in (spec.special.mask, *spec.special.forbidden) if token is not None]] = -torch.inf
    return int(logits.argmax())


def causal_reply(network: Network, prompt: Sequence[int], width: int) -> list[int]:
    """Greedy decoding, one token at a time."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + width:
        token = raw_next(network, tokens)
        if token in network.spec.special.ends:
            break
        tokens.append(token)
    return tokens[len(prompt) :]
