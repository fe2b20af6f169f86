#!/usr/bin/env python3
"""Trains GPT-2 from scratch on a text file with a chosen attention.

  experiments/gpt2/train.py --text prose.txt --output runs/tessera
  experiments/gpt2/train.py --text prose.txt --output runs/sdpa --attention sdpa --compile
  experiments/gpt2/train.py --text prose.txt --output runs/tessera --resume --steps 2000
  torchrun --nproc-per-node 4 experiments/gpt2/train.py --text prose.txt --output runs/four

The folder gets checkpoint.pt, log.csv and run.json. Batches and dropout depend on the seed and the
step alone, so a run that was stopped and resumed ends with the same bits as one that was not, as
far as the kernels are deterministic (--deterministic makes them).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import data
import log
import model as gpt2

VALIDATION_STEP = 1 << 30  # validation batches are drawn as those of steps from here on
CHECKPOINT = "checkpoint.pt"
SDPA_KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
# What must not change between a checkpoint and the run that resumes from it.
FIXED = ("size", "context", "batch", "seed", "precision", "dropout", "vocabulary")


class Workers:
    """The processes of this run (torchrun's, or one) and this one's device."""

    def __init__(self, device: str) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        self.device = torch.device(device, local) if device == "cuda" else torch.device(device)
        if device == "cuda":
            torch.cuda.set_device(self.device)
        if self.count > 1:
            dist.init_process_group("nccl" if device == "cuda" else "gloo")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mean(self, value: torch.Tensor) -> float:
        """Over all processes."""
        value = value.detach().float().clone()
        if self.count > 1:
            dist.all_reduce(value)
        return value.item() / self.count

    def close(self) -> None:
        if self.count > 1:
            dist.barrier()
            dist.destroy_process_group()


def learning_rate(step: int, options: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine down to a tenth."""
    if step < options.warmup:
        return options.rate * (step + 1) / options.warmup
    done = (step - options.warmup) / max(1, options.schedule - options.warmup)
    return options.rate * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


class Training:
    """A model with its optimizer, and how far they are."""

    def __init__(self, options: argparse.Namespace, workers: Workers) -> None:
        self._options = options
        self._workers = workers
        self.text = data.Text(options.text, options.tokenizer)
        options.vocabulary = self.text.vocabulary
        if gpt2.SPARSE in (options.attention, *options.evaluate):
            gpt2.register_sparse(options.context, workers.device, options.pattern)
        config = gpt2.configuration(
            options.size, options.vocabulary, options.context, options.dropout
        )
        self.model = gpt2.make_model(
            config, options.attention, options.precision, workers.device, options.seed
        )
        self.optimizer = gpt2.make_optimizer(self.model, options.rate)
        self.step = 0
        if options.resume:
            self._load()
        self._run = torch.compile(self.model) if options.compile else self.model
        if workers.count > 1:
            self._run = DistributedDataParallel(self._run)

    def _batch(self, part: str, step: int) -> torch.Tensor:
        options, workers = self._options, self._workers
        batch = self.text.batch(
            part, step, options.batch, options.context, options.seed, workers.rank, workers.count
        )
        return batch.to(workers.device)

    def advance(self, rate: float) -> torch.Tensor:
        """One step; gives the loss before it."""
        options = self._options
        torch.manual_seed(data.seed_of(options.seed, self.step, self._workers.rank))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = gpt2.loss_of(self._run, self._batch("train", self.step), options.precision)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.detach()

    @torch.no_grad()
    def validate(self, attention: str) -> float:
        """The loss on the text's end, computed with a given attention."""
        options = self._options
        gpt2.set_attention(self.model, attention)
        self.model.eval()
        losses = [
            gpt2.loss_of(
                self.model, self._batch("validation", VALIDATION_STEP + n), options.precision
            )
            for n in range(options.validation_batches)
        ]
        self.model.train()
        gpt2.set_attention(self.model, options.attention)
        return self._workers.mean(torch.stack(losses).mean())

    def save(self) -> None:
        """Writes the checkpoint; a run that is killed leaves a whole one."""
        options = self._options
        path = Path(options.output) / CHECKPOINT
        partial = path.with_suffix(".partial")
        fixed = {name: getattr(options, name) for name in FIXED}
        torch.save(
            dict(
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                step=self.step,
                fixed=fixed | {"ranks": self._workers.count},
            ),
            partial,
        )
        os.replace(partial, path)

    def _load(self) -> None:
        path = Path(self._options.output) / CHECKPOINT
        found = torch.load(path, map_location=self._workers.device, weights_only=True)
        for name, value in found["fixed"].items():
            now = self._workers.count if name == "ranks" else getattr(self._options, name)
            if now != value:
                raise ValueError(f"{name}: {now}, expected {value} as in {path}")
        self.model.load_state_dict(found["model"])
        self.optimizer.load_state_dict(found["optimizer"])
        self.step = found["step"]


def train(training: Training, options: argparse.Namespace, workers: Workers) -> None:
    """Steps up to options.steps, with logs and checkpoints."""
    records = log.Log(Path(options.output), training.step) if workers.first else None
    tokens = options.batch * options.context * workers.count
    begin = time.perf_counter()
    since, first = begin, training.step
    steps = range(training.step, options.steps)
    bar = tqdm(steps, initial=training.step, total=options.steps, disable=not workers.first)
    for step in bar:
        rate = learning_rate(step, options)
        loss = training.advance(rate)
        last = step + 1 == options.steps
        if (step + 1) % options.log_every == 0 or last:
            mean = workers.mean(loss)  # waits for the device
            now = time.perf_counter()
            if records is not None:
                records.add(
                    dict(
                        step=step,
                        loss=round(mean, 6),
                        rate=float(f"{rate:.6g}"),
                        tokens_per_second=round((step + 1 - first) * tokens / (now - since)),
                        seconds=round(now - begin, 3),
                    )
                )
            since, first = now, step + 1
            bar.set_postfix(loss=f"{mean:.4f}")
        if workers.first and (last or (step + 1) % options.save_every == 0):
            training.save()


def finish(training: Training, options: argparse.Namespace, workers: Workers) -> None:
    """Validation losses and run.json."""
    losses = {name: training.validate(name) for name in (options.attention, *options.evaluate)}
    if not workers.first:
        return
    record = dict(
        machine=log.describe_machine(workers.device),
        options=vars(options),
        workers=workers.count,
        steps=training.step,
        validation_loss=losses,
    )
    if workers.device.type == "cuda":
        record["peak_bytes"] = torch.cuda.max_memory_allocated()
    log.write_json(Path(options.output) / "run.json", record)
    for name, loss in losses.items():
        print(f"validation loss with {name}: {loss:.4f}")


def run(options: argparse.Namespace, workers: Workers) -> None:
    """All of it. Nothing that holds the process group outlives this."""
    training = Training(options, workers)
    train(training, options, workers)
    finish(training, options, workers)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--text", required=True, help="any file; .xz is unpacked; the last 5 %% are for validation")
    add("--tokenizer", help="a tokenizer.json instead of bytes")
    add("--output", required=True, help="folder of the run")
    add("--size", default="small", choices=gpt2.SIZES)
    add("--attention", default="tessera", choices=gpt2.ATTENTIONS)
    add("--sdpa-kernel", choices=SDPA_KERNELS, help="which of PyTorch's kernels sdpa takes")
    add("--pattern", default="local_global", choices=gpt2.PATTERNS, help="of tessera_sparse")
    add(
        "--evaluate",
        default=[],
        type=lambda text: text.split(","),
        help=f"attentions to compute the final validation loss with, of {','.join(gpt2.EVALUATED)}",
    )
    add("--context", type=int, default=1024)
    add("--batch", type=int, default=16, help="sequences a step and process")
    add("--steps", type=int, default=500)
    add("--schedule", type=int, help="steps that the cosine takes; default --steps")
    add("--warmup", type=int, default=50)
    add("--rate", type=float, default=6e-4)
    add("--dropout", type=float, default=0.0)
    add("--precision", default="autocast", choices=gpt2.PRECISIONS, help="bf16: weights, too")
    add("--compile", action="store_true")
    add("--deterministic", action="store_true")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--resume", action="store_true", help="go on from the folder's checkpoint")
    add("--log-every", type=int, default=10)
    add("--save-every", type=int, default=500)
    add("--validation-batches", type=int, default=8)
    options = parser.parse_args(arguments)
    options.schedule = options.schedule or options.steps
    for name in options.evaluate:
        if name not in gpt2.EVALUATED:
            parser.error(f"--evaluate: {name}, expected some of {','.join(gpt2.EVALUATED)}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_options(arguments)
    torch.use_deterministic_algorithms(options.deterministic)
    Path(options.output).mkdir(parents=True, exist_ok=True)
    workers = Workers(options.device)
    kernel = options.sdpa_kernel
    with sdpa_kernel(SDPA_KERNELS[kernel]) if kernel else contextlib.nullcontext():
        run(options, workers)
    workers.close()


if __name__ == "__main__":
    main()
