"""Logs of a run: log.csv with a row each logged step, run.json with what the run was."""

from __future__ import annotations

import csv
import json
import subprocess
import time
from pathlib import Path

import torch

import tessera

COLUMNS = ("step", "loss", "rate", "tokens_per_second", "seconds")


def describe_machine(device: torch.device) -> dict[str, str]:
    """What a measurement must be read with."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else tessera.devices()[0]
    here = Path(__file__).parent
    commit = subprocess.run(
        ["git", "-C", here, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    return dict(
        date=time.strftime("%Y-%m-%d", time.gmtime()),
        chip=chip,
        torch=torch.__version__,
        tessera=tessera.version(),
        commit=commit.stdout.strip() or "unknown",
    )


def read_csv(path: Path) -> list[dict[str, float]]:
    """The rows of a log."""
    with open(path, newline="", encoding="utf-8") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


class Log:
    """Writes log.csv row by row. A run that resumes keeps the rows before its first step."""

    def __init__(self, folder: Path, first_step: int) -> None:
        self._path = folder / "log.csv"
        kept = read_csv(self._path) if first_step > 0 and self._path.exists() else []
        with open(self._path, "w", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writeheader()
        for row in kept:
            if row["step"] < first_step:
                self.add(row | {"step": int(row["step"])})

    def add(self, row: dict[str, float]) -> None:
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)


def write_json(path: Path, contents: object) -> None:
    path.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
