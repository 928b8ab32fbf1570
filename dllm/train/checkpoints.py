"""A run's state on disk, the same whatever number of processes made it: whole tensors, named as the network's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dllm.errors import CheckpointError
from dllm.train.distributed import Division, slice_like, whole

FILE = "state.pt"
FORMAT = 2
READABLE = (1, 2)
"""Format 1 lacks the counts of positions by source."""


class Keeper:
    """Moves between what this process holds and what is saved. All processes must do the same."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], division: Division | None) -> None:
        self.parameters, self.division = parameters, division

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the CPU, from tensors that are laid out as the parameters of their names."""
        found = {name: whole(tensor.detach()) for name, tensor in tensors.items()}
        if self.division is not None:
            found = self.division.whole_of(found)
        return {name: tensor.cpu() for name, tensor in found.items()}

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The opposite, in the parameters' types and on their devices."""
        parts = dict(tensors) if self.division is None else self.division.part_of(tensors)
        return {
            name: slice_like(
                tensor.to(self.parameters[name].device, self.parameters[name].dtype), self.parameters[name]
            )
            for name, tensor in parts.items()
        }

    def optimiser_state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        """`optimiser.state_dict()` with whole tensors."""
        return self._converted(optimiser, optimiser.state_dict(), self.whole)

    def load_optimiser(self, optimiser: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
        optimiser.load_state_dict(self._converted(optimiser, saved, self.own))

    def _converted(self, optimiser: torch.optim.Optimizer, state: dict[str, Any], convert: Any) -> dict[str, Any]:
        """The state with everything that is laid out as its parameter converted; counters stay."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        ordered = [names[id(p)] for group in optimiser.param_groups for p in group["params"]]
        entries: dict[int, dict[str, Any]] = {number: dict(entry) for number, entry in state["state"].items()}
        for key in sorted({key for entry in entries.values() for key in entry}):
            tensors = {
                ordered[number]: entry[key]
                for number, entry in entries.items()
                if isinstance(entry.get(key), Tensor) and entry[key].dim()
            }
            converted = convert(tensors) if tensors else {}
            for number, entry in entries.items():
                if ordered[number] in converted:
                    entry[key] = converted[ordered[number]]
        return {**state, "state": entries}


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """A crash in between leaves the older state."""
    part = folder / f"{FILE}.part"
    torch.save(dict(state), part)
    part.replace(folder / FILE)


def read_state(folder: Path) -> dict[str, Any]:
    """
    Raises:
        CheckpointError: If there is no state, it is damaged, or of a format that is not known.
    """
    path = folder / FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: nothing to resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its readers meet
        raise CheckpointError(f"{path}: not a state: {error}") from error
    if state.get("format") not in READABLE:
        known = ", ".join(map(str, READABLE))
        raise CheckpointError(f"{path}: state format {state.get('format')!r}, expected one of {known}")
    return state


def check_shapes(path: Path, saved: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> None:
    """
    Raises:
        CheckpointError: If the saved weights are of another model.
    """
    if missing := sorted(expected.keys() ^ saved.keys()):
        raise CheckpointError(f"{path}: the configuration's model and the saved one differ in {missing[0]}")
    for name, shape in expected.items():
        if saved[name].shape != shape:
            found = list(saved[name].shape)
            raise CheckpointError(f"{path}: {name} has shape {found}, the configuration asks for {list(shape)}")
