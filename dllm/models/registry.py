"""Which family a checkpoint belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dllm.errors import UnrecognisedModelError
from dllm.models import builtin, diffusion_gemma, dit, dream, fast_dllm, llada, llada2, llada_moe, nemotron, sdar
from dllm.models.family import Family

FAMILIES: tuple[Family, ...] = (
    builtin.FAMILY,
    sdar.FAMILY,
    nemotron.FAMILY,
    fast_dllm.FAMILY,
    dream.FAMILY,
    llada.FAMILY,
    llada_moe.FAMILY,
    llada2.FAMILY,
    llada2.EDITING,
    diffusion_gemma.FAMILY,
    dit.MDLM,
    dit.SEDD,
    # Further families go here, in the order in which they should be tried.
)


def family_named(name: str) -> Family:
    """
    Raises:
        UnrecognisedModelError: If there is no such family.
    """
    for family in FAMILIES:
        if family.name == name:
            return family
    raise UnrecognisedModelError(f"the name {name!r}", tuple(family.name for family in FAMILIES))


def family_of(
    config: Mapping[str, Any], tensor_names: frozenset[str] = frozenset(), override: str | None = None
) -> Family:
    """The family of a checkpoint, by the first of these that tells: `override`, the config's first architecture, its model type, and
    names of tensors that only one family has.

    Args:
        tensor_names: Names on disk; empty when unknown.
        override: Name of a family, whatever the config says.

    Raises:
        UnrecognisedModelError: If none of them does.
    """
    if override is not None:
        return family_named(override)
    architecture = next(iter(config.get("architectures") or ()), None)
    model_type = config.get("model_type")
    possible = [family for family in FAMILIES if family.is_this is None or family.is_this(config, tensor_names)]
    for family in possible:
        if architecture in family.architectures:
            return family
    for family in possible:
        if model_type in family.model_types:
            return family
    for family in possible:
        if family.landmarks and tensor_names.issuperset(family.landmarks):
            return family
    found = f"architecture {architecture!r}, model_type {model_type!r}"
    if tensor_names:
        found += f" and tensors such as {min(tensor_names)}"
    raise UnrecognisedModelError(found, tuple(family.name for family in FAMILIES))
