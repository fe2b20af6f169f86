"""Attention on NumPy arrays and on whatever offers DLPack, through the C interface."""

from __future__ import annotations

import ctypes
from typing import Any

from . import _arrays, _library
from ._arguments import Settings
from ._block_mask import BlockMask
from ._library import Handle, call

_INPUTS = {"alibi": "alibi_slopes", "sinks": "sink"}  # the others have the same name there


def describe(settings: Settings) -> _library.Attention:
    """The settings as the C interface takes them."""
    return _library.Attention(
        causal=settings.causal,
        alignment=int(settings.top_left),
        has_scale=settings.scale is not None,
        scale=settings.scale or 0.0,
        has_window=1,
        window_left=settings.window[0],
        window_right=settings.window[1],
        softcap=settings.softcap,
        dropout_p=settings.dropout_p,
        precision=settings.precision,
        deterministic=settings.deterministic,
    )


class Call:
    """Views of the inputs of one call, which live as long as this object."""

    def __init__(self, settings: Settings, block_mask: BlockMask | None, **arrays: Any) -> None:
        self.attention = describe(settings)
        self._views = {
            name: _arrays.View(name, array) for name, array in arrays.items() if array is not None
        }
        self.inputs = _library.Inputs(
            **{_INPUTS.get(name, name): view.pointer for name, view in self._views.items()}
        )
        self.device = self._views["q"].device
        if block_mask is not None:
            view = _arrays.View("block_mask", block_mask.data)
            self._views["block_mask"] = view
            self._block_mask = block_mask.view(view.address, *view.device)
            self.inputs.block_mask = ctypes.pointer(self._block_mask)

    def plan(self, passes: int, **options: object) -> Handle:
        """A tessera_plan."""
        options = _library.PlanOptions(passes=passes, **options)
        return Handle(
            "plan",
            "tessera_plan_create",
            ctypes.byref(self.attention),
            ctypes.byref(self.inputs),
            ctypes.byref(options),
        )


def attention(
    q: Any,
    k: Any,
    v: Any,
    settings: Settings,
    *,
    block_mask: BlockMask | None,
    **arrays: Any,
) -> tuple[Any, Any]:
    """o and lse of [B, H, S, D] arrays, or of [T, H, D] ones with cu_seqlens, in q's own kind of
    array. Returns when the results are there."""
    if settings.dropout_p > 0:
        raise ValueError(
            f"dropout_p: {settings.dropout_p} on arrays without gradients, expected 0"
        )
    call_ = Call(settings, block_mask, q=q, k=k, v=v, **arrays)
    plan = call_.plan(_library.FORWARD)
    size = ctypes.c_size_t()
    call("tessera_plan_workspace_bytes", plan.pointer, ctypes.byref(size), None)
    workspace = _arrays.Workspace(q, size.value)
    packed = arrays.get("cu_seqlens_q") is not None
    heads, rows = (q.shape[1], q.shape[0]) if packed else (q.shape[1], q.shape[2])
    o = _arrays.empty(q, (*q.shape[:-1], v.shape[-1]))
    wide = "float64" if "float64" in str(q.dtype) else "float32"
    lse = _arrays.empty(q, (heads, rows) if packed else (q.shape[0], heads, rows), wide)
    o_view, lse_view = _arrays.View("o", o), _arrays.View("lse", lse)
    outputs = _library.Outputs(o=o_view.pointer, lse=lse_view.pointer)
    run = _library.Run(workspace=workspace.address, workspace_bytes=size.value)
    call(
        "tessera_plan_forward",
        plan.pointer,
        ctypes.byref(call_.inputs),
        ctypes.byref(outputs),
        ctypes.byref(run),
    )
    _arrays.wait(call_.device)
    return o, lse
