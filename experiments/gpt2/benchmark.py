#!/usr/bin/env python3
"""Tokens per second and peak memory of GPT-2's training steps, for several attentions in turns.

  experiments/gpt2/benchmark.py --sizes small,medium --contexts 1024 --output speed.json
  experiments/gpt2/benchmark.py --contexts 1024,4096 --compile yes --attention sdpa,tessera
  experiments/gpt2/benchmark.py --part block --device cpu --contexts 2048 --tokens 2048 --precision f32

A step is forward, backward and fused AdamW on random tokens, without dropout. Contenders of one
size and context live in one process and take turns; times are medians over turns. Peak memory is
one contender's: weights, optimizer and everything alive during its step. --part block is one
transformer block without optimizer, for comparing attention on a CPU, --part attention what that
has between its projections. `none` is a step without attention, which bounds what any attention
can reach.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from pathlib import Path

import torch
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

import log
import model as gpt2

RATE = 1e-4
CONTENDERS = (*gpt2.ATTENTIONS, gpt2.NONE)


class ModelStep:
    """Training steps of a whole model."""

    def __init__(self, cell: dict, attention: str, compiled: bool, device: torch.device) -> None:
        config = gpt2.configuration(cell["size"], cell["vocabulary"], cell["context"])
        with device:  # where drawing a model's weights takes less time than its steps
            self._model = gpt2.make_model(config, attention, cell["precision"], device, seed=0)
        self._optimizer = gpt2.make_optimizer(self._model, RATE)
        self._run = torch.compile(self._model, dynamic=False) if compiled else self._model
        self._precision = cell["precision"]
        shape = cell["batch"], cell["context"]
        self._tokens = torch.randint(cell["vocabulary"], shape, device=device)

    def __call__(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        gpt2.loss_of(self._run, self._tokens, self._precision).backward()
        self._optimizer.step()


class LayerStep:
    """Forward and backward passes of one transformer block, or of the attention in it without the
    projections: q, k and v are views of one tensor then, and o is a tensor again."""

    def __init__(self, cell: dict, attention: str, compiled: bool, device: torch.device) -> None:
        config = gpt2.configuration(cell["size"], cell["vocabulary"], cell["context"])
        config._attn_implementation = gpt2.WHOLE if attention == "tessera" else attention
        dtype = torch.bfloat16 if cell["precision"] == "bf16" else torch.float32
        torch.manual_seed(0)
        layer, width = GPT2Block(config, layer_idx=0), config.n_embd
        if cell["part"] == "attention":
            layer, width = layer.attn, 3 * config.n_embd
            layer.c_attn = layer.c_proj = torch.nn.Identity()
        self._layer = layer.to(device, dtype)
        self._run = torch.compile(self._layer, dynamic=False) if compiled else self._layer
        rows = cell["batch"], cell["context"]
        self._x = torch.randn(*rows, width, device=device, dtype=dtype, requires_grad=True)
        self._d_o = torch.randn(*rows, config.n_embd, device=device, dtype=dtype)

    def __call__(self) -> None:
        self._layer.zero_grad(set_to_none=True)
        self._x.grad = None
        out = self._run(self._x)
        (out[0] if isinstance(out, tuple) else out).backward(self._d_o)


class Contender:
    """One attention on one cell, compiled and warm, with the peak memory of its step."""

    def __init__(
        self, cell: dict, part: str, attention: str, compiled: bool, device: torch.device
    ) -> None:
        self._device = device
        self.seconds: list[float] = []
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        begin = time.perf_counter()
        self._step = (ModelStep if part == "model" else LayerStep)(
            cell, attention, compiled, device
        )
        for _ in range(2):
            self._step()
        self._wait()
        self.warmup_seconds = time.perf_counter() - begin
        self.peak_bytes = None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self._step()
            self._wait()
            self.peak_bytes = torch.cuda.max_memory_allocated() - before

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def take_turn(self, steps: int) -> None:
        """One untimed step, then `steps` timed ones."""
        self._step()
        self._wait()
        begin = time.perf_counter()
        for _ in range(steps):
            self._step()
        self._wait()
        self.seconds.append((time.perf_counter() - begin) / steps)


def measure_cell(cell: dict, options: argparse.Namespace, device: torch.device) -> list[dict]:
    """A record of each contender on one size and context."""
    made, records = {}, []
    if gpt2.SPARSE in options.attention:
        gpt2.register_sparse(cell["context"], device, options.pattern)
    for compiled in options.compile:
        for attention in options.attention:
            record = cell | dict(attention=attention, compiled=compiled)
            try:
                made[attention, compiled] = Contender(
                    cell, options.part, attention, compiled, device
                )
            except torch.OutOfMemoryError:
                record["missing"] = "out of memory"
            records.append(record)
            gc.collect()
            torch.cuda.empty_cache()
    for _ in range(options.turns):
        for contender in made.values():
            contender.take_turn(options.steps)
            torch.cuda.empty_cache()
    for record in records:
        contender = made.get((record["attention"], record["compiled"]))
        if contender is not None:
            seconds = statistics.median(contender.seconds)
            record |= dict(
                seconds=seconds,
                fastest=min(contender.seconds),
                slowest=max(contender.seconds),
                tokens_per_second=cell["batch"] * cell["context"] / seconds,
                peak_bytes=contender.peak_bytes,
                warmup_seconds=contender.warmup_seconds,
            )
    made.clear()
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
    return records


def line_of(record: dict, records: list[dict]) -> str:
    """One record for reading, beside the others of the same cell that are not Tessera's."""
    title = (
        f"{record['size']:7} {record['context']:6} x{record['batch']:<3} {record['precision']:8} "
        f"{'compiled' if record['compiled'] else '':8} {record['attention']:14}"
    )
    if "missing" in record:
        return f"{title} {record['missing']}"
    text = f"{title} {record['tokens_per_second']:9.0f} tokens/s"
    if record["peak_bytes"] is not None:
        text += f" {record['peak_bytes'] / 2**30:7.2f} GiB"
    for other in records:
        same = all(other[name] == record[name] for name in ("size", "context", "compiled"))
        if same and other is not record and not other["attention"].startswith("tessera"):
            if "seconds" in other:
                ratio = other["seconds"] / record["seconds"]
                text += f"  {ratio:.2f}x {other['attention']}"
    return text


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    def names(known):
        def parse(text):
            for name in text.split(","):
                if name not in known:
                    raise argparse.ArgumentTypeError(f"{name}, expected some of {','.join(known)}")
            return text.split(",")

        return parse

    def sizes(text):
        return [int(size) for size in text.split(",")]

    def answers(text):
        return [name == "yes" for name in names(("no", "yes"))(text)]

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--part", default="model", choices=("model", "block", "attention"))
    add("--sizes", type=names(gpt2.SIZES), default=["small"])
    add("--contexts", type=sizes, default=[1024], help="such as 1024,4096,16384,65536")
    add("--attention", type=names(CONTENDERS), default=["eager", "sdpa", "tessera"])
    add("--pattern", default="local_global", choices=gpt2.PATTERNS, help="of tessera_sparse")
    add("--compile", type=answers, default=[False], help="no, yes or no,yes")
    add("--precision", default="autocast", choices=gpt2.PRECISIONS)
    add("--vocabulary", type=int, default=50257, help="50304 has fast matrix products")
    add("--threads", type=int, help="of PyTorch on the CPU")
    add("--tokens", type=int, default=16384, help="a step; the batch is this over the context")
    add("--turns", type=int, default=7)
    add("--steps", type=int, default=3, help="timed in each turn")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--output", help="a JSON file; records of a file that is there are kept")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[dict]:
    options = parse_options(arguments)
    device = torch.device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    machine = log.describe_machine(device)
    if device.type == "cpu":
        machine["threads"] = str(torch.get_num_threads())
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    written = Path(options.output) if options.output else None
    kept = json.loads(written.read_text())["records"] if written and written.exists() else []
    records: list[dict] = []
    for size in options.sizes:
        for context in options.contexts:
            cell = dict(
                size=size,
                context=context,
                vocabulary=options.vocabulary,
                batch=max(1, options.tokens // context),
                precision=options.precision,
                part=options.part,
            )
            measured = measure_cell(cell, options, device)
            for record in measured:
                print(line_of(record, measured), flush=True)
            records += measured
            if written:
                log.write_json(written, dict(machine=machine, records=kept + records))
    return records


if __name__ == "__main__":
    main()
