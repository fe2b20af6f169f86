#!/usr/bin/env python3
"""Draws what train.py and benchmark.py wrote.

  experiments/gpt2/plot.py loss runs/eager runs/sdpa runs/tessera --output loss.png
  experiments/gpt2/plot.py context speed.json --output context.png

`loss` takes any number of runs of any number of seeds. It draws each run's loss, smoothed over
--window logged steps, and how far each is from the mean of its seed's runs with `eager` and `sdpa`;
and it prints, for each two attentions, how far runs of one seed are from each other at the same
step: rms and mean over the logged steps of all such pairs, rms of the smoothed curves, and the rms
of the means over the last quarter of the steps. Where a seed has three standard runs or more (repeats,
PyTorch's several kernels) it says how each run's smoothed curve lies in their spread, a standard
one's in that of the other standard ones: rms distance from their mean, and the share of the steps at
which it is between the lowest and the highest of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402

import log  # noqa: E402

COLOURS = {
    "eager": "tab:gray",
    "sdpa": "tab:orange",
    "sdpa_whole": "tab:red",
    "tessera": "tab:blue",
    "tessera_sparse": "tab:green",
    "none": "lightgray",
}
STANDARD = ("eager", "sdpa")


def smoothed(values: list[float], window: int) -> list[float]:
    """Means of the last `window` values, of fewer at the start."""
    return [
        sum(values[max(0, n + 1 - window) : n + 1]) / min(window, n + 1) for n in range(len(values))
    ]


class Run(NamedTuple):
    """A run of train.py. What it was is in run.json; without that its folder has the attention's name."""

    attention: str
    seed: int
    losses: dict[int, float]  # by step

    def apart(self, others: list[Run]) -> dict[int, float]:
        """Its losses less the others' mean, at the steps that all of them logged."""
        steps = [s for s in self.losses if all(s in other.losses for other in others)]
        return {
            s: self.losses[s] - sum(other.losses[s] for other in others) / len(others)
            for s in steps
        }


def read_run(folder: str) -> Run:
    rows = log.read_csv(Path(folder) / "log.csv")
    record = Path(folder) / "run.json"
    options = json.loads(record.read_text())["options"] if record.exists() else {}
    return Run(
        options.get("attention", Path(folder).name),
        options.get("seed", 0),
        {int(row["step"]): row["loss"] for row in rows},
    )


def rms(values: list[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def differences(runs: list[Run], window: int) -> dict[tuple[str, str], dict[str, float]]:
    """For each two attentions, or one with itself, how far runs of one seed are from each other."""
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one, other in itertools.combinations(runs, 2):
        if one.seed != other.seed:
            continue
        if one.attention > other.attention:
            one, other = other, one
        apart = list(one.apart([other]).values())
        if not apart:
            continue
        last = apart[-max(1, len(apart) // 4) :]
        lists = found.setdefault((one.attention, other.attention), {})
        lists.setdefault("step", []).extend(apart)
        lists.setdefault("smoothed", []).extend(smoothed(apart, window))
        lists.setdefault("end", []).append(sum(last) / len(last))
    return {
        pair: dict(
            pairs=len(lists["end"]),
            rms=rms(lists["step"]),
            mean=sum(lists["step"]) / len(lists["step"]),
            smoothed=rms(lists["smoothed"]),
            end=rms(lists["end"]),
        )
        for pair, lists in sorted(found.items())
    }


def spreads(runs: list[Run], window: int) -> list[tuple[Run, float, float]]:
    """For each run: how far it is from the standard runs of its seed, and how often among them."""
    found = []
    for run in runs:
        others = [
            r for r in runs if r is not run and r.seed == run.seed and r.attention in STANDARD
        ]
        if len(others) < 3 - (run.attention in STANDARD):
            continue
        steps = list(run.apart(others))
        curve, *curves = (
            smoothed([r.losses[s] for s in steps], window) for r in (run, *others)
        )
        columns = list(zip(*curves))
        apart = [x - sum(c) / len(c) for x, c in zip(curve, columns)]
        inside = sum(min(c) <= x <= max(c) for x, c in zip(curve, columns)) / len(steps)
        found.append((run, rms(apart), inside))
    return found


def draw_losses(runs: list[Run], window: int, output: str) -> None:
    """Loss against step, and each run's distance from the standard ones of its seed."""
    figure, (curves, distances) = plt.subplots(1, 2, figsize=(11, 4))
    labelled = set()
    for run in runs:
        style = dict(color=COLOURS.get(run.attention), linewidth=1, alpha=0.8)
        if run.attention not in labelled:
            style["label"] = run.attention
            labelled.add(run.attention)
        curves.plot(list(run.losses), smoothed(list(run.losses.values()), window), **style)
        standard = [r for r in runs if r.seed == run.seed and r.attention in STANDARD]
        if standard:
            apart = run.apart(standard)
            distances.plot(list(apart), smoothed(list(apart.values()), window), **style)
    curves.set(xlabel="step", ylabel="loss, nats per token")
    distances.set(xlabel="step", ylabel="less the mean of eager and sdpa, same seed")
    curves.legend()
    for axes in (curves, distances):
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=130, bbox_inches="tight")


def draw_contexts(path: str, size: str, output: str) -> None:
    """Tokens per second and peak memory against context length."""
    records = [r for r in json.loads(Path(path).read_text())["records"] if r["size"] == size]
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(10, 4))
    kinds = sorted({(r["attention"], r["compiled"]) for r in records})
    for attention, compiled in kinds:
        rows = sorted(
            (r for r in records if (r["attention"], r["compiled"]) == (attention, compiled)),
            key=lambda r: r["context"],
        )
        rows = [r for r in rows if "missing" not in r]
        style = dict(
            label=attention + (", compiled" if compiled else ""),
            color=COLOURS.get(attention),
            linestyle="-" if compiled else "--",
            marker="o",
            markersize=4,
        )
        contexts = [r["context"] for r in rows]
        speed.plot(contexts, [r["tokens_per_second"] / 1000 for r in rows], **style)
        if all(r["peak_bytes"] is not None for r in rows):
            peaks = [r["peak_bytes"] / 2**30 for r in rows]
            memory.plot(contexts, peaks, **style)
    speed.set(xlabel="context", ylabel="thousand tokens/s", xscale="log")
    memory.set(xlabel="context", ylabel="peak memory, GiB", xscale="log")
    for axes in (speed, memory):
        ticks = sorted({r["context"] for r in records})
        axes.set_xticks(ticks, [f"{t // 1024}k" if t >= 1024 else str(t) for t in ticks])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    speed.legend()
    figure.savefig(output, dpi=130, bbox_inches="tight")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    loss = kinds.add_parser("loss")
    loss.add_argument("runs", nargs="+", help="folders of train.py")
    loss.add_argument("--window", type=int, default=10)
    context = kinds.add_parser("context")
    context.add_argument("file", help="of benchmark.py")
    context.add_argument("--size", default="small")
    for one in (loss, context):
        one.add_argument("--output", required=True, help="an image file")
    options = parser.parse_args(arguments)
    if options.kind == "context":
        draw_contexts(options.file, options.size, options.output)
        return
    runs = [read_run(folder) for folder in options.runs]
    draw_losses(runs, options.window, options.output)
    for (a, b), d in differences(runs, options.window).items():
        print(
            f"{a} and {b}: {d['pairs']} pairs, rms {d['rms']:.4f}, mean {d['mean']:+.4f}, "
            f"smoothed {d['smoothed']:.4f}, end {d['end']:.4f}"
        )
    for run, apart, inside in spreads(runs, options.window):
        print(
            f"{run.attention}, seed {run.seed}: {apart:.4f} from the standard runs, "
            f"among them at {inside:.0%} of the steps"
        )


if __name__ == "__main__":
    main()
