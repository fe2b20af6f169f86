"""torch.ops.tessera: loads the operators and gives them fake kernels, autograd and autocast.

The operators themselves (schemas, CPU and CUDA kernels) are in csrc/ops.cpp:

* `attention(q, k, v, …) -> (o, lse)`, dense with [B, H, S, D] tensors, packed with [T, H, D] ones
  and cu_seqlens, exact or quantised by `precision`;
* `attention_backward(d_o, d_lse, o, lse, gradients, q, k, v, …)`, whose results that nobody asked
  for are empty.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

MINIMUM = (2, 10)
# Bits of attention_backward's `gradients`, by position of the input in the schema.
GRADIENTS = {0: 1, 1: 2, 2: 4, 3: 8, 6: 16}
_ALIBI = 5
_TENSORS = (*range(12), 13)  # positions of tensors among the shared arguments
_ARGUMENTS = 23

_found = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
if _found < MINIMUM:
    raise ImportError(
        f"torch: version {torch.__version__}, expected 2.10 or later: pip install -U torch"
    )
_file = Path(__file__).with_name("libtessera_torch.so")
if not _file.exists():
    raise ImportError(
        "tessera was built without PyTorch's operators, expected libtessera_torch.so: build it "
        "where PyTorch is installed with pip install --no-build-isolation ."
    )
torch.ops.load_library(_file)

attention = torch.ops.tessera.attention.default
attention_backward = torch.ops.tessera.attention_backward.default
_DEFAULTS = [
    argument.default_value if argument.has_default_value() else None
    for argument in attention._schema.arguments
]


def _empty_in_order_of(like: torch.Tensor, last: int) -> torch.Tensor:
    """As empty_in_order_of in csrc/tensors.cpp: dense, heads and tokens in `like`'s order."""
    sizes = [*like.shape[:-1], last]
    if like.stride(-3) < like.stride(-2):
        sizes[-3], sizes[-2] = sizes[-2], sizes[-3]
        return like.new_empty(sizes).transpose(-3, -2)
    return like.new_empty(sizes)


@torch.library.register_fake("tessera::attention")
def _attention_fake(q, k, v, *rest, **named):
    heads, rows = (1, 0) if q.dim() == 3 else (1, 2)
    sizes = [q.shape[heads], q.shape[rows]]
    if q.dim() == 4:
        sizes.insert(0, q.shape[0])
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _empty_in_order_of(q, v.shape[-1]), q.new_empty(sizes, dtype=wide)


@torch.library.register_fake("tessera::attention_backward")
def _attention_backward_fake(d_o, d_lse, o, lse, gradients, q, k, v, *rest, **named):
    arguments = [q, k, v, *rest]
    results = []
    for position, bit in GRADIENTS.items():
        of = arguments[position] if position < len(arguments) else None
        if of is None or not gradients & bit:
            results.append(q.new_empty([0]))
        elif position < 3:
            results.append(_empty_in_order_of(of, of.shape[-1]))
        else:
            results.append(of.new_empty(of.shape))
    return tuple(results)


class _Attention(torch.autograd.Function):
    """Attention with its gradients; takes and gives what the operator does."""

    @staticmethod
    def forward(ctx, *arguments):
        if ctx.needs_input_grad[_ALIBI]:
            raise ValueError("alibi: requires grad, but ALiBi slopes have no gradient: detach them")
        with torch._C._AutoDispatchBelowAutograd():
            o, lse = attention(*arguments)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(o, lse, *(arguments[i] for i in _TENSORS))
        ctx.settings = [None if i in _TENSORS else arguments[i] for i in range(_ARGUMENTS)]
        return o, lse

    @staticmethod
    def backward(ctx, d_o, d_lse):
        o, lse, *tensors = ctx.saved_tensors
        arguments = list(ctx.settings)
        for position, tensor in zip(_TENSORS, tensors):
            arguments[position] = tensor
        wanted = sum(bit for position, bit in GRADIENTS.items() if ctx.needs_input_grad[position])
        if d_o is None:
            d_o = torch.zeros_like(o)
        results = attention_backward(d_o, d_lse, o, lse, wanted, *arguments)
        gradients = [None] * _ARGUMENTS
        for (position, bit), gradient in zip(GRADIENTS.items(), results):
            if wanted & bit:
                gradients[position] = gradient
        return tuple(gradients)


def _autograd_kernel(*arguments):
    # The dispatcher leaves arguments at the end out that have their default.
    if torch._C.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
        return _Attention.apply(*arguments, *_DEFAULTS[len(arguments) :])
    with torch._C._AutoDispatchBelowAutograd():
        return attention(*arguments)


def _no_second_derivative(ctx, *gradients):
    raise RuntimeError("tessera::attention: no second derivatives, expected create_graph=False")


torch.library.register_autograd("tessera::attention_backward", _no_second_derivative)


def _autocast_kernel(device_type: str, key: torch._C.DispatchKey):
    """q, k and v in autocast's dtype; the bias as well, unless it is float32, which kernels take."""
    keyset = torch._C.DispatchKeySet(key)

    def cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return tensor if tensor.dtype == torch.float64 else tensor.to(dtype)

    def kernel(q, k, v, bias=None, *rest):
        dtype = torch.get_autocast_dtype(device_type)
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            q, k, v = (cast(tensor, dtype) for tensor in (q, k, v))
            if bias is not None and bias.dtype != torch.float32:
                bias = cast(bias, dtype)
            return attention(q, k, v, bias, *rest)

    return kernel


_library = torch.library.Library("tessera", "FRAGMENT")
_library.impl("attention", _autograd_kernel, "Autograd")
for _device, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
    _library.impl(
        "attention", _autocast_kernel(_device, getattr(torch._C.DispatchKey, _key)), _key
    )
