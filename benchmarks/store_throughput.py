"""Writing and reading the store, against a plain memory-mapped array of the same numbers.

    python benchmarks/store_throughput.py
    python benchmarks/store_throughput.py --rows 1000000 --classes 100 --repeats 5

The teacher hands out rows of an array, so that only storing is timed. Every line is the median of interleaved repeats,
with the spread of the ratio; above 1 the store is slower. Writing includes what a plain copy does not do: the check of
the teacher, finiteness, digests of every shard, and the comparison with the teacher when the store is opened.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.data import Data
from limbeck.teachers import Source, Store


class Rows(Source):
    """A teacher that answers with the rows of an array, at no cost to speak of."""

    description = "the rows of an array"
    reads_inputs = False
    supplies = frozenset({"logits"})

    def __init__(self, values: Tensor, ids: np.ndarray[Any, Any]) -> None:
        self.values = values
        self.place = np.zeros(ids.max() + 1, np.int64)
        self.place[ids] = np.arange(len(ids))

    @property
    def classes(self) -> int:
        return self.values.shape[1]

    def fingerprint(self) -> str:
        return f"rows {tuple(self.values.shape)}"

    def outputs(self, x: Any, ids: Tensor, want: Sequence[str]) -> dict[str, Tensor]:
        places = self.place[ids.numpy()]
        first, last = int(places[0]), int(places[-1])
        if last - first == len(places) - 1:
            return {"logits": self.values[first : last + 1]}
        return {"logits": self.values[torch.from_numpy(places)]}


def plain_write(path: Path, values: np.ndarray[Any, Any], batch: int) -> None:
    pages = np.memmap(path, values.dtype, "w+", shape=values.shape)
    for start in range(0, len(values), batch):
        pages[start : start + batch] = values[start : start + batch]
    pages.flush()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def seconds(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def compare(name: str, size: float, repeats: int, plain: Callable[[], object], store: Callable[[], object]) -> None:
    """One line: both in MB/s, and the ratio of their times."""
    times = [(seconds(plain), seconds(store)) for _ in range(repeats)]
    ratios = sorted(own / other for other, own in times)
    rates = [size / 1e6 / statistics.median(part) for part in zip(*times)]
    print(
        f"{name:<44}{rates[0]:>10,.0f}{rates[1]:>10,.0f}{statistics.median(ratios):>9.2f}"
        f"   {ratios[0]:.2f} to {ratios[-1]:.2f}"
    )


def run(folder: Path, count: int, classes: int, batch: int, accesses: int, repeats: int) -> None:
    generator = np.random.default_rng(0)
    values = torch.from_numpy(generator.normal(size=(count, classes)).astype(np.float32))
    ids = generator.permutation(count)
    data = Data(np.zeros((count, 1), np.float32), np.arange(count) % classes, ids=ids, fractions=(1.0, 0.0, 0.0))
    data.fingerprint()
    teacher = Rows(values, ids)
    # Ids as the store finds them, and as a plain array would: by a table from id to row.
    asked = torch.from_numpy(ids[generator.integers(0, count, accesses)])
    order = torch.from_numpy(generator.permutation(count))
    print(f"{count:,} samples, {classes} classes, batches of {batch}; {repeats} repeats, one thread")
    print(f"{'':<44}{'plain':>10}{'store':>10}{'ratio':>9}   spread")
    print(f"{'':<44}{'MB/s':>10}{'MB/s':>10}")
    for dtype, narrow in (("float32", np.float32), ("float16", np.float16)):
        array, name = values.numpy().astype(narrow), dtype
        size = array.nbytes
        plain_path, number = folder / f"{name}.bin", iter(range(repeats + 1))

        def write(dtype: str = dtype, number: Any = number) -> None:
            Store.write(folder / f"{dtype}-{next(number)}", teacher, data, dtype=dtype, batch_size=4096, progress=False)

        compare(
            f"write, {name}",
            size,
            repeats,
            lambda path=plain_path, array=array: plain_write(path, array, 4096),
            write,
        )
        pages = np.memmap(plain_path, narrow, "r", shape=values.shape)
        store = Store.open(folder / f"{name}-0", data=data)

        def read_store(rows: Tensor, step: int, store: Store = store, ids: bool = False) -> None:
            for part in rows.split(step):
                store.gather(ids=part) if ids else store.gather(part)

        def read_plain(rows: Tensor, step: int, pages: Any = pages, table: Any = None) -> None:
            for part in rows.split(step):
                places = part.numpy() if table is None else table[part.numpy()]
                torch.from_numpy(pages[places]).float()

        for what, rows, step in (("an epoch in random order", order, batch), ("in large batches", order, 8192)):
            compare(
                f"read, {name}, {what}",
                size,
                repeats,
                lambda rows=rows, step=step, read=read_plain: read(rows, step),
                lambda rows=rows, step=step, read=read_store: read(rows, step),
            )
        compare(
            f"read, {name}, {accesses:,} ids at random",
            size / count * accesses,
            repeats,
            lambda read=read_plain: read(asked, 8192, table=teacher.place),
            lambda read=read_store: read(asked, 8192, ids=True),
        )
    top = Store.write(folder / "topk", teacher, data, dtype=f"topk:{min(10, classes - 1)}", progress=False)
    once = seconds(lambda: read_store(order, batch, top))
    print(
        f"{top.dtype}: {(folder / 'topk' / 'outputs.safetensors').stat().st_size / 1e6:,.1f} MB on disk against ",
        end="",
    )
    print(f"{values.numel() * 4 / 1e6:,.1f} MB in float32; an epoch in random order takes {once:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description="The store against a plain memory-mapped copy.")
    parser.add_argument("--rows", type=int, default=100_000, help="samples")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=128, help="samples a step of the student")
    parser.add_argument("--ids", type=int, default=1_000_000, help="ids read at random")
    parser.add_argument("--repeats", type=int, default=5)
    settings = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder), settings.rows, settings.classes, settings.batch, settings.ids, settings.repeats)


if __name__ == "__main__":
    main()
