"""A text as tokens, and batches of it that depend on nothing but the seed and the step."""

from __future__ import annotations

import lzma
from pathlib import Path

import torch

VALIDATION = 0.05  # of the text, at its end


class Text:
    """The tokens of a text file: its bytes, or what a tokenizer makes of it.

    Args:
        path: any file; .xz is unpacked.
        tokenizer: a file of the tokenizers library (tokenizer.json), or None for bytes.
    """

    def __init__(self, path: str, tokenizer: str | None = None) -> None:
        read = lzma.open if path.endswith(".xz") else open
        with read(path, "rb") as file:
            contents = file.read()
        if tokenizer is None:
            self.vocabulary = 256
            tokens = torch.frombuffer(bytearray(contents), dtype=torch.uint8)
        else:
            from tokenizers import Tokenizer

            made = Tokenizer.from_file(tokenizer)
            self.vocabulary = made.get_vocab_size()
            ids = made.encode(contents.decode(errors="replace"), add_special_tokens=False).ids
            tokens = torch.tensor(ids, dtype=torch.int32)
        cut = len(tokens) - int(VALIDATION * len(tokens))
        self._parts = {"train": tokens[:cut], "validation": tokens[cut:]}
        self._name = Path(path).name

    def batch(
        self,
        part: str,
        step: int,
        sequences: int,
        context: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> torch.Tensor:
        """This rank's share, int64 [sequences, context], of a step's sequences at random places.

        However many ranks divide a step's sequences among them, together they get the same ones.
        """
        tokens = self._parts[part]
        if len(tokens) <= context:
            raise ValueError(
                f"{self._name}: {len(tokens)} {part} tokens, expected more than the context, "
                f"{context}"
            )
        generator = torch.Generator().manual_seed(seed_of(seed, step))
        starts = torch.randint(len(tokens) - context, (sequences * ranks,), generator=generator)
        mine = starts[rank * sequences : (rank + 1) * sequences]
        return torch.stack([tokens[i : i + context] for i in mine.tolist()]).long()


def seed_of(seed: int, step: int, rank: int = 0) -> int:
    """One seed for each step and rank of a run."""
    return (seed * 1_000_003 + step) * 4099 + rank
