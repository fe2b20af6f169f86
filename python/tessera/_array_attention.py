"""Attention and its gradients on NumPy arrays and on whatever offers DLPack, through the C
interface."""

from __future__ import annotations

import ctypes
from typing import Any

from . import _arrays, _library
from ._arguments import Settings
from ._block_mask import BlockMask
from ._library import Handle, call

_INPUTS = {"alibi": "alibi_slopes", "sinks": "sink"}  # the others have the same name there


def describe(settings: Settings, plan: Handle | None) -> _library.Attention:
    """The settings as the C interface takes them, with the adaptive plan that they name."""
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
        adaptive_plan=None if plan is None else plan.pointer,
        layer=settings.layer,
    )


class Call:
    """Views of the inputs of one call, which live as long as this object."""

    def __init__(self, settings: Settings, block_mask: BlockMask | None, **arrays: Any) -> None:
        self._adaptive = None if settings.plan is None else _library.adaptive_plan(settings.plan)
        self.attention = describe(settings, self._adaptive)
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

    def run(self, plan: Handle, direction: str, *outgoing: _library.Struct) -> None:
        """Runs a plan's pass with a workspace of its own, and waits for the results."""
        sizes = ctypes.c_size_t(), ctypes.c_size_t()
        call("tessera_plan_workspace_bytes", plan.pointer, *map(ctypes.byref, sizes))
        size = max(s.value for s in sizes)
        workspace = _arrays.Workspace(self._views["q"].owner, size)
        run = _library.Run(workspace=workspace.address, workspace_bytes=size)
        structs = map(ctypes.byref, (self.inputs, *outgoing, run))
        call(f"tessera_plan_{direction}", plan.pointer, *structs)
        _arrays.wait(self.device)


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
        raise ValueError(f"dropout_p: {settings.dropout_p} on arrays without gradients, expected 0")
    call_ = Call(settings, block_mask, q=q, k=k, v=v, **arrays)
    packed = arrays.get("cu_seqlens_q") is not None
    heads, rows = (q.shape[1], q.shape[0]) if packed else (q.shape[1], q.shape[2])
    o = _arrays.empty(q, (*q.shape[:-1], v.shape[-1]))
    wide = "float64" if "float64" in str(q.dtype) else "float32"
    lse = _arrays.empty(q, (heads, rows) if packed else (q.shape[0], heads, rows), wide)
    o_view, lse_view = _arrays.View("o", o), _arrays.View("lse", lse)
    outputs = _library.Outputs(o=o_view.pointer, lse=lse_view.pointer)
    call_.run(call_.plan(_library.FORWARD), "forward", outputs)
    return o, lse


def gradients(
    d_o: Any,
    d_lse: Any | None,
    o: Any,
    lse: Any,
    q: Any,
    k: Any,
    v: Any,
    settings: Settings,
    *,
    block_mask: BlockMask | None,
    **arrays: Any,
) -> dict[str, Any]:
    """Gradients of q, k, v, and of bias and sinks if they are given, by name, in q's own kind of
    array. Returns when they are there."""
    call_ = Call(settings, block_mask, q=q, k=k, v=v, **arrays)
    of = dict(q=q, k=k, v=v, bias=arrays.get("bias"), sinks=arrays.get("sinks"))
    of = {name: array for name, array in of.items() if array is not None}
    made = {name: _arrays.empty(a, tuple(a.shape)) for name, a in of.items()}
    views = {name: _arrays.View(f"d_{name}", array) for name, array in made.items()}
    given = {"o": o, "lse": lse, "d_o": d_o, "d_lse": d_lse}
    given = {name: _arrays.View(name, a) for name, a in given.items() if a is not None}
    outputs = _library.Outputs(o=given["o"].pointer, lse=given["lse"].pointer)
    d_outputs = _library.OutputGradients(
        **{name: given[name].pointer for name in ("d_o", "d_lse") if name in given}
    )
    d_inputs = _library.InputGradients(
        **{f"d_{_INPUTS.get(name, name)}": view.pointer for name, view in views.items()}
    )
    plan = call_.plan(_library.BACKWARD, bias_gradient="bias" in of, sink_gradient="sinks" in of)
    call_.run(plan, "backward", outputs, d_outputs, d_inputs)
    return made
