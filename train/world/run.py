"""The work folder of one seed, shared by all stages: options, log, data pools."""

from __future__ import annotations

import argparse
import json
import os
import time

import numpy as np
import torch

from train.world.captions import words
from train.world.data import draw_pool, write_pool
from train.world.tokens import build_tokenizer

SIZE = 48


class Run:
    """Where each stage finds and leaves its files."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.work_dir
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = build_tokenizer(words())
        self.folder.mkdir(parents=True, exist_ok=True)

    def log(self, row: dict) -> None:
        """Print a line and append it to log.jsonl."""
        row = {key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()}
        line = json.dumps(row | {"time": time.strftime("%H:%M:%S"), "cpu_seconds": round(sum(os.times()[:4]), 1)})
        print(line, flush=True)
        with (self.folder / "log.jsonl").open("a") as stream:
            stream.write(line + "\n")

    def pool(self, name: str) -> dict[str, np.ndarray]:
        """Images, labels and tokens of one pool; drawn if missing."""
        path = self.folder / f"data_{name}.npz"
        if not path.exists():
            began = time.perf_counter()
            count = self.options.images // (4 if name == "pairs" else 1)
            write_pool(path, draw_pool(self.options.seed, name, count, SIZE, self.options.workers), self.tokenizer)
            self.log({"stage": "data", "pool": name, "images": count, "seconds": time.perf_counter() - began})
        with np.load(path) as arrays:
            return dict(arrays)
