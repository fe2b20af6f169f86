"""The arguments that describe an attention, read once for every kind of array."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple

from . import _library

Alignment = Literal["bottom_right", "top_left"]
Layout = Literal["bhsd", "bshd"]
Precision = Literal["exact", "sage8", "sage4", "adaptive"]


class Settings(NamedTuple):
    """What is no tensor; see tessera.attention."""

    causal: bool
    top_left: bool
    window: tuple[int, int]
    scale: float | None
    softcap: float
    dropout_p: float
    precision: int
    deterministic: bool
    plan: str | None
    layer: int


def _choice(name: str, value: str, choices: dict[str, int]) -> int:
    if value not in choices:
        raise ValueError(f"{name}: {value!r}, expected one of {', '.join(map(repr, choices))}")
    return choices[value]


def _window(window: tuple[int, int] | None) -> tuple[int, int]:
    if window is None:
        return -1, -1
    try:
        left, right = window
    except (TypeError, ValueError):
        raise ValueError(f"window: {window!r}, expected (left, right)") from None
    return left, right


def read_settings(
    *,
    causal: bool,
    alignment: str,
    window: tuple[int, int] | None,
    softcap: float | None,
    dropout_p: float,
    scale: float | None,
    precision: str,
    plan: str | os.PathLike | None,
    layer: int | None,
    deterministic: bool,
) -> Settings:
    """Turns names into the C interface's numbers. Values are checked there.

    Raises:
        ValueError: a name is unknown, or a plan file and layer do not come with adaptive precision
            or adaptive precision without them.
    """
    if precision == "adaptive":
        if plan is None or layer is None:
            raise ValueError("plan, layer: absent, expected both with precision 'adaptive'")
    elif plan is not None or layer is not None:
        raise ValueError(f"plan, layer: given with precision {precision!r}, expected 'adaptive'")
    return Settings(
        bool(causal),
        _choice("alignment", alignment, _library.ALIGNMENTS) == 1,
        _window(window),
        scale,
        0.0 if softcap is None else softcap,
        dropout_p,
        _choice("precision", precision, _library.PRECISIONS),
        bool(deterministic),
        None if plan is None else os.fspath(plan),
        0 if layer is None else layer,
    )


def swaps_heads(layout: str) -> bool:
    """Whether tensors come as [B, S, H, D] rather than [B, H, S, D]."""
    return _choice("layout", layout, {"bhsd": 0, "bshd": 1}) == 1
