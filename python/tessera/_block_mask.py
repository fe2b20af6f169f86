"""Block masks: which blocks of the score matrix exist at all."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np

from . import _library
from ._library import BlockMaskView, BlockShape, Handle, call

_SIZES = ("batch", "heads", "seq_q", "seq_kv", "block_q", "block_kv", "entries", "partial_blocks")
_PREDICATE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, *(4 * [ctypes.c_int64])
)


def _i64(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _arrays(sizes: dict[str, int]) -> dict[str, tuple[np.dtype, int]]:
    """dtype and length of each array of a view, in the order in which `data` holds them."""
    matrices = sizes["batch"] * sizes["heads"]
    q_blocks = -(-sizes["seq_q"] // sizes["block_q"])
    kv_blocks = -(-sizes["seq_kv"] // sizes["block_kv"])
    entries = sizes["entries"]
    words = sizes["partial_blocks"] * sizes["block_q"] * -(-sizes["block_kv"] // 32)
    wide, narrow = np.dtype(np.int64), np.dtype(np.int32)
    return {
        "row_offsets": (wide, matrices * q_blocks + 1),
        "transposed_offsets": (wide, matrices * kv_blocks + 1),
        "transposed_entries": (wide, entries),
        "columns": (narrow, entries),
        "bits_index": (narrow, entries),
        "transposed_rows": (narrow, entries),
        "bits": (np.dtype(np.uint32), words),
    }


class BlockMask:
    """A block mask in compressed-sparse-row form with its transpose; immutable.

    Listed blocks are full, or partial with a bit for every element. Cost follows the number of
    listed blocks. Make one with the builders below; they give masks on the CPU, `to` moves them.
    Block sizes are multiples of 16. A batch or number of heads of 1 stands for all.

    Attributes:
        data: the arrays, one after another, as bytes: a NumPy array, or what `to` made of it.
        sizes: batch, heads, seq_q, seq_kv, block_q, block_kv, listed blocks, partial blocks.
    """

    def __init__(self, data: Any, sizes: list[int]) -> None:
        self.data = data
        self.sizes = sizes

    # Builders. Each raises ValueError if an argument is wrong.

    @classmethod
    def from_blocks(
        cls, blocks: Any, seq_q: int, seq_kv: int, *, block_q: int = 128, block_kv: int = 128
    ) -> BlockMask:
        """From booleans [q_blocks, kv_blocks] or [batch, heads, q_blocks, kv_blocks]; true = visit
        the block, in full."""
        return cls._from_booleans("blocks", blocks, seq_q, seq_kv, block_q, block_kv)

    @classmethod
    def from_dense(cls, mask: Any, *, block_q: int = 128, block_kv: int = 128) -> BlockMask:
        """From a boolean mask of elements, [Sq, Skv] or [batch, heads, Sq, Skv]; true = attend.
        Blocks that are all true become full, mixed ones partial, others are not listed."""
        rows, keys = mask.shape[-2:]
        return cls._from_booleans("elements", mask, rows, keys, block_q, block_kv)

    @classmethod
    def causal(
        cls,
        seq_q: int,
        seq_kv: int,
        *,
        alignment: str = "bottom_right",
        block_q: int = 128,
        block_kv: int = 128,
    ) -> BlockMask:
        """Causal: blocks that the diagonal crosses are partial, those before it full."""
        if alignment not in _library.ALIGNMENTS:
            raise ValueError(f"alignment: {alignment!r}, expected 'bottom_right' or 'top_left'")
        which = ctypes.c_int32(_library.ALIGNMENTS[alignment])
        return cls._build("causal", (seq_q, seq_kv, block_q, block_kv), which)

    @classmethod
    def butterfly(
        cls, seq_q: int, seq_kv: int, *, block_q: int = 128, block_kv: int = 128
    ) -> BlockMask:
        """Fixed butterfly (Pixelated Butterfly, Chen et al. 2021): a query block visits the key
        blocks whose index is its own or differs from it in one bit."""
        return cls._build("butterfly", (seq_q, seq_kv, block_q, block_kv))

    @classmethod
    def local_global(
        cls,
        seq_q: int,
        seq_kv: int,
        *,
        local: int,
        global_: int,
        block_q: int = 128,
        block_kv: int = 128,
    ) -> BlockMask:
        """Longformer, BigBird: `local` blocks to either side of the diagonal, and the first
        `global_` rows and columns of blocks."""
        return cls._build(
            "local_global", (seq_q, seq_kv, block_q, block_kv), _i64(local), _i64(global_)
        )

    @classmethod
    def strided(
        cls,
        seq_q: int,
        seq_kv: int,
        *,
        local: int,
        stride: int,
        block_q: int = 128,
        block_kv: int = 128,
    ) -> BlockMask:
        """Sparse Transformer (Child et al. 2019): the last `local` blocks up to the diagonal and
        every `stride`-th key block counted back from it."""
        return cls._build(
            "strided", (seq_q, seq_kv, block_q, block_kv), _i64(local), _i64(stride)
        )

    @classmethod
    def random(
        cls,
        seq_q: int,
        seq_kv: int,
        *,
        density: float,
        seed: int = 0,
        batch: int = 1,
        heads: int = 1,
        block_q: int = 128,
        block_kv: int = 128,
    ) -> BlockMask:
        """Each row of blocks visits round(density · kv_blocks), at least 1, of them; the same on
        every machine for the same seed."""
        return cls._build(
            "random",
            (seq_q, seq_kv, block_q, block_kv),
            _i64(batch),
            _i64(heads),
            ctypes.c_double(density),
            ctypes.c_uint64(seed),
        )

    @classmethod
    def from_predicate(
        cls,
        attend: Any,
        seq_q: int,
        seq_kv: int,
        *,
        batch: int = 1,
        heads: int = 1,
        block_q: int = 128,
        block_kv: int = 128,
    ) -> BlockMask:
        """From attend(b, h, i, j) -> bool, called for every element: for small masks."""
        errors = []

        def guarded(_, b, h, i, j):
            try:
                return 0 if errors else int(bool(attend(b, h, i, j)))
            except Exception as error:
                errors.append(error)
                return 0

        mask = cls._build(
            "from_predicate",
            (seq_q, seq_kv, block_q, block_kv),
            _i64(batch),
            _i64(heads),
            _PREDICATE(guarded),
            None,
        )
        if errors:
            raise errors[0]
        return mask

    @classmethod
    def from_flex(cls, block_mask: Any) -> BlockMask:
        """From torch.nn.attention.flex_attention's BlockMask. Its full blocks stay full; its mask_mod
        is evaluated on its partial blocks. The result is on the CPU."""
        from ._flex import csr_of

        rows, keys = block_mask.seq_lengths
        block_q, block_kv = block_mask.BLOCK_SIZE
        batch, heads = block_mask.kv_num_blocks.shape[:2]
        arrays = csr_of(block_mask)
        pairs = [argument for a in arrays for argument in (_pointer(a), ctypes.c_size_t(a.size))]
        return cls._build(
            "from_csr", (rows, keys, block_q, block_kv), _i64(batch), _i64(heads), *pairs
        )

    @classmethod
    def _from_booleans(cls, what, booleans, seq_q, seq_kv, block_q, block_kv) -> BlockMask:
        if hasattr(booleans, "cpu"):  # a PyTorch tensor, anywhere
            booleans = booleans.cpu().numpy()
        array = np.ascontiguousarray(booleans)
        if array.dtype != bool or array.ndim not in (2, 4):
            raise ValueError(
                f"{what}: {array.dtype} of rank {array.ndim}, expected bool of rank 2 or 4"
            )
        batch, heads = array.shape[:2] if array.ndim == 4 else (1, 1)
        return cls._build(
            f"from_{what}",
            (seq_q, seq_kv, block_q, block_kv),
            _i64(batch),
            _i64(heads),
            _pointer(array),
            ctypes.c_size_t(array.size),
        )

    @classmethod
    def _build(cls, builder: str, shape: tuple[int, ...], *arguments: object) -> BlockMask:
        seq_q, seq_kv, block_q, block_kv = shape
        block = BlockShape(seq_q=seq_q, seq_kv=seq_kv, block_q=block_q, block_kv=block_kv)
        handle = Handle(
            "block_mask", f"tessera_block_mask_{builder}", ctypes.byref(block), *arguments
        )
        view = BlockMaskView()
        call("tessera_block_mask_get_view", handle.pointer, ctypes.byref(view))
        sizes = {name: getattr(view, name) for name in _SIZES}
        parts = []
        for name, (dtype, length) in _arrays(sizes).items():
            size = dtype.itemsize * length
            parts.append(ctypes.string_at(getattr(view, name), size) if size else b"")
        return cls(np.frombuffer(bytearray(b"".join(parts)), np.uint8), list(sizes.values()))

    # Use.

    def to(self, where: Any) -> BlockMask:
        """The same mask elsewhere: on a PyTorch device (torch.device or its name), or as an array of
        a module such as numpy or cupy."""
        host = self.numpy()
        if hasattr(where, "asarray"):
            return BlockMask(where.asarray(host), self.sizes)
        import torch

        return BlockMask(torch.from_numpy(host).to(where), self.sizes)

    def numpy(self) -> np.ndarray:
        """`data` as a NumPy array."""
        data = self.data
        if isinstance(data, np.ndarray):
            return data
        return data.cpu().numpy() if hasattr(data, "cpu") else np.asarray(data.get())

    @property
    def density(self) -> float:
        """Listed blocks as a share of all."""
        sizes = dict(zip(_SIZES, self.sizes))
        blocks = math.prod(
            -(-sizes[f"seq_{axis}"] // sizes[f"block_{axis}"]) for axis in ("q", "kv")
        )
        total = blocks * sizes["batch"] * sizes["heads"]
        return sizes["entries"] / total if total else 0.0

    def array(self, name: str) -> np.ndarray:
        """One array of tessera_block_mask_view by name, e.g. "columns", on the CPU."""
        offset = 0
        for other, (dtype, length) in _arrays(dict(zip(_SIZES, self.sizes))).items():
            if other == name:
                return self.numpy()[offset : offset + dtype.itemsize * length].view(dtype)
            offset += dtype.itemsize * length
        raise ValueError(f"name: {name!r}, expected an array of tessera_block_mask_view")

    def view(self, address: int, device_type: int, device_index: int) -> BlockMaskView:
        """The mask for the C interface, its data at `address`."""
        sizes = dict(zip(_SIZES, self.sizes))
        view = BlockMaskView(
            q_blocks=-(-sizes["seq_q"] // sizes["block_q"]),
            kv_blocks=-(-sizes["seq_kv"] // sizes["block_kv"]),
            device_type=device_type,
            device_index=device_index,
            **sizes,
        )
        for name, (dtype, length) in _arrays(sizes).items():
            setattr(view, name, address)
            address += dtype.itemsize * length
        return view

    def to_dense(self) -> np.ndarray:
        """The mask of elements, bool [batch, heads, Sq, Skv]; true = attend."""
        batch, heads, seq_q, seq_kv, block_q, block_kv = self.sizes[:6]
        q_blocks, kv_blocks = -(-seq_q // block_q), -(-seq_kv // block_kv)
        words = self.array("bits").reshape(-1, block_q, -(-block_kv // 32))
        bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[..., :block_kv]
        dense = np.zeros((batch * heads * q_blocks, kv_blocks, block_q, block_kv), bool)
        offsets, columns, index = (
            self.array(name) for name in ("row_offsets", "columns", "bits_index")
        )
        rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        dense[rows, columns] = True
        partial = index >= 0
        dense[rows[partial], columns[partial]] = bits[index[partial]]
        dense = dense.reshape(batch, heads, q_blocks, kv_blocks, block_q, block_kv)
        dense = dense.swapaxes(3, 4).reshape(batch, heads, q_blocks * block_q, -1)
        return dense[..., :seq_q, :seq_kv]

    def __repr__(self) -> str:
        named = ", ".join(f"{name}={size}" for name, size in zip(_SIZES, self.sizes))
        return f"BlockMask({named}, density={self.density:.4g})"
