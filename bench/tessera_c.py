"""Tessera's C interface for PyTorch tensors, through the Python package: attention with fixed
shapes, planned once and run many times.

The package is the installed one or this repository's python/; its library is TESSERA_LIBRARY, if
that is set when `load` is called.
"""

import ctypes
import math
import os
import sys
from pathlib import Path

import torch


def load(library=None):
    """The package, with a library other than its own if one is named."""
    if library:
        os.environ["TESSERA_LIBRARY"] = os.path.abspath(library)
        sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
    import tessera

    return tessera


class Plan:
    """Attention over the given tensors, [B, H, S, D] or packed [T, H, D] in any strides; keeps them
    alive. Results are in `o`, `lse`, `d_q`, `d_k` and `d_v`.
    """

    def __init__(
        self,
        q,
        k,
        v,
        d_o=None,
        causal=False,
        block_mask=None,
        cu_seqlens=None,
        implementation="",
        threads=0,
        precision="exact",
        lse=True,
    ):
        load()
        from tessera import _arguments, _array_attention, _arrays, _library

        self._interface = _library
        settings = _arguments.read_settings(
            causal=causal,
            alignment="bottom_right",
            window=None,
            softcap=None,
            dropout_p=0.0,
            scale=None,
            precision=precision,
            plan=None,
            layer=None,
            deterministic=False,
        )
        arrays = dict(q=q, k=k, v=v, cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens)
        self._call = _array_attention.Call(settings, block_mask, **arrays)
        rows = q.shape[:3] if q.dim() == 4 else q.shape[1::-1]
        self.o = torch.empty_like(q)
        self.lse = torch.empty(rows, dtype=torch.float32, device=q.device)
        self._views = {}

        def pointers(**tensors):
            views = {name: _arrays.View(name, t) for name, t in tensors.items()}
            self._views |= views
            return {name: view.pointer for name, view in views.items()}

        outputs = dict(o=self.o, lse=self.lse) if lse else dict(o=self.o)
        self._outputs = _library.Outputs(**pointers(**outputs))
        passes = _library.FORWARD
        if d_o is not None:
            passes |= _library.BACKWARD
            self.d_q, self.d_k, self.d_v = (torch.empty_like(t) for t in (q, k, v))
            self._d_outputs = _library.OutputGradients(**pointers(d_o=d_o))
            self._d_inputs = _library.InputGradients(
                **pointers(d_q=self.d_q, d_k=self.d_k, d_v=self.d_v)
            )
        self._made = self._call.plan(
            passes, implementation=implementation.encode(), threads=threads
        )
        self._plan = self._made.pointer
        sizes = [ctypes.c_size_t(), ctypes.c_size_t()]
        _library.call("tessera_plan_workspace_bytes", self._plan, *map(ctypes.byref, sizes))
        self.workspace_bytes = [size.value for size in sizes]
        self._workspace = torch.empty(max(self.workspace_bytes), dtype=torch.uint8, device=q.device)

    def implementations(self):
        """The rows that run forward and backward."""
        names = [ctypes.c_char_p(), ctypes.c_char_p()]
        self._interface.call("tessera_plan_implementation", self._plan, *map(ctypes.byref, names))
        return [name.value.decode() for name in names]

    def _run(self, name, *structs):
        run = self._interface.Run(
            workspace=self._workspace.data_ptr() or None,
            workspace_bytes=self._workspace.numel(),
            stream=torch.cuda.current_stream().cuda_stream if self.o.is_cuda else None,
        )
        structs = (self._call.inputs, self._outputs, *structs, run)
        self._interface.call(name, self._plan, *map(ctypes.byref, structs))

    def forward(self):
        """Runs the forward pass; on a GPU enqueues it on PyTorch's current stream."""
        self._run("tessera_plan_forward")

    def backward(self):
        """The same for the backward pass; forward must have run."""
        self._run("tessera_plan_backward", self._d_outputs, self._d_inputs)


def flops(batch, heads, seq_q, seq_kv, head_dim, causal, backward):
    """Operations as the FlashAttention papers count them."""
    forward = 4 * batch * heads * seq_q * seq_kv * head_dim
    return math.prod([forward, 0.5 if causal else 1, 2.5 if backward else 1])
