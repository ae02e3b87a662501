"""Speed and memory of the TRM's training beside a plain PyTorch SASRec: ``python -m benchmarks.trm_training``.

Both train on the same batches of MovieLens-1M (or of generated sequences of the same shape), in turns, batch by batch,
with the same width, layers, heads, length, dropout and type (bfloat16 where the machine has it). An epoch's seconds are
extrapolated from some batches of all lengths by their positions.

The plain one is SASRec as an experienced person writes it after gSASRec's published code: ``nn.Embedding``,
``scaled_dot_product_attention``, 256 negatives drawn for every position, their embeddings gathered to (batch, length,
257, width), binary cross entropy, AdamW, autocast. Ours does more per position: a softmax over the whole catalogue,
text adaptors, a quarter of the positions asked again with a preference, and averaging of the weights.

Operations are those of useful matrix products, two for each multiply-add, padding not counted. With n positions, q
questions (positions, and those asked again), P the pairs a position attends to (itself included), M items, d width, t
text width, per step: 84·n·d²·layers for the layers, 12·P·d·layers for attention, 6·q·M·d for the softmax (each forward
and backward, three products), and 4·M·t·(8 d + 8) for the item adaptor (two: the text needs no gradient). The machine's
rate is that of a 2048³ product, measured between the steps, with the same type and threads. Peak memory is that of a
process of its own which does nothing but our training on the same batches.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.trm_accuracy import open_dataset
from deeprec.config import TrmConfig
from deeprec.data.splits import standalone_sequences
from deeprec.trm.artifact import Vocabulary
from deeprec.trm.learning.batches import Batch, Rows, draw_batches, draw_windows, phrase_table
from deeprec.trm.learning.learner import Learner
from deeprec.trm.model import EXPERTS, Trm
from deeprec.trm.training import has_bf16

NEGATIVES, TEXT_WIDTH, PHRASES = 256, 384, 28
USERS, ITEMS, MEDIAN, SPREAD = 6040, 3416, 88.0, 1.0
SIZE = 2048
MEMORY_LIMIT = 6.0


@dataclass(frozen=True)
class World:
    """Sequences of catalogue rows, how many items there are, and their phrases (items, most)."""

    sequences: list[Rows]
    items: int
    phrases: np.ndarray[Any, np.dtype[np.int32]]
    source: str


def main() -> None:
    """Measure, print a table, and write it as JSON where asked."""
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    world = read_world(arguments.data)
    trm = TrmConfig(epochs=10, max_length=arguments.length)
    batches, total = choose_batches(world, trm, arguments.steps)
    if arguments.memory_only:
        _train_only(world, trm, batches)
        return
    memory = _peak_memory()
    figures = {**compare(world, trm, batches, total), "peak memory, GB": memory}
    print_table(world, trm, figures)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- data


def read_world(path: Path | None) -> World:
    """MovieLens-1M or a deeprec dataset; without a path, generated sequences of MovieLens-1M's shape."""
    if path is not None:
        with tempfile.TemporaryDirectory() as scratch:
            dataset = open_dataset(path, Path(scratch))
        index = dataset.catalogue.index
        sequences = [np.array([index[item] for item in items]) for items in standalone_sequences(dataset).values()]
        return World(sequences, len(index), phrase_table(dataset.catalogue, dataset.catalogue.phrases), str(path))
    generator = np.random.default_rng(0)
    lengths = np.clip(MEDIAN * np.exp(SPREAD * generator.standard_normal(USERS)), 18, 2300).astype(int)
    chances = 1 / (np.arange(ITEMS) + 50.0)
    sequences = [generator.choice(ITEMS, size=length, p=chances / chances.sum()) for length in lengths]
    phrases = np.where(generator.random((ITEMS, 3)) < (1.0, 0.7, 0.3), generator.integers(PHRASES, size=(ITEMS, 3)), -1)
    return World(sequences, ITEMS, phrases.astype(np.int32), "generated")


def choose_batches(world: World, trm: TrmConfig, steps: int) -> tuple[list[Batch], int]:
    """An even spread over the batches of an epoch ordered by length, and the epoch's positions."""
    generator = np.random.default_rng(0)
    windows = draw_windows(world.sequences, trm.max_length, generator)
    batches = [
        one
        for one in draw_batches(windows, trm.batch_size, trm.max_length, generator)
        if len(one.inputs) == trm.batch_size
    ]
    batches.sort(key=lambda batch: batch.inputs.shape[1])
    places = (np.arange(steps) + 0.5) * len(batches) / steps
    return [batches[int(place)] for place in places], sum(len(window) - 1 for window in windows)


def make_learner(world: World, trm: TrmConfig) -> Learner:
    """Our training, with random text vectors."""
    torch.manual_seed(0)
    text, phrases = (F.normalize(torch.randn(rows, TEXT_WIDTH), dim=-1).numpy() for rows in (world.items, 64))
    counts = np.bincount(np.concatenate(world.sequences), minlength=world.items)
    vocabulary = Vocabulary(tuple(map(str, range(world.items))), tuple(map(str, range(64))), text, phrases, counts, "")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    users = [str(user) for user in range(len(world.sequences))]
    model = Trm(trm, torch.from_numpy(text)).to(device).train()
    return Learner(model, vocabulary, world.phrases % 64, users, world.sequences, 0, trm.bf16 and has_bf16(device))


# ------------------------------------------------------------------------------------------------------- the plain one


class PlainLayer(nn.Module):
    """A pre-LN Transformer layer."""

    def __init__(self, trm: TrmConfig) -> None:
        super().__init__()
        width = trm.width
        self.heads = trm.heads
        self.norm_attention, self.norm_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(trm.dropout)

    def forward(self, states: Tensor) -> Tensor:
        batch, length, width = states.shape
        parts = self.project(self.norm_attention(states)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        states = states + self.dropout(self.merge(mixed.transpose(1, 2).reshape(batch, length, width)))
        return states + self.dropout(self.inner(self.norm_inner(states)))


class PlainSasRec(nn.Module):
    """SASRec with many negatives per position."""

    def __init__(self, trm: TrmConfig, items: int) -> None:
        super().__init__()
        self.items, self.positions = nn.Embedding(items, trm.width), nn.Embedding(trm.max_length, trm.width)
        self.layers = nn.ModuleList(PlainLayer(trm) for _ in range(trm.layers))
        self.norm, self.dropout = nn.LayerNorm(trm.width), nn.Dropout(trm.dropout)
        nn.init.normal_(self.items.weight, std=0.02)

    def forward(self, inputs: Tensor, candidates: Tensor) -> Tensor:
        """(batch, length) rows and (batch, length, candidates) rows → their scores."""
        states = self.dropout(self.items(inputs) + self.positions.weight[: inputs.shape[1]])
        for layer in self.layers:
            states = layer(states)
        return torch.einsum("bld,blkd->blk", self.norm(states), self.items(candidates))


def make_plain_step(world: World, trm: TrmConfig) -> Callable[[Batch], float]:
    """One step of the plain SASRec on a batch; its loss."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = PlainSasRec(trm, world.items).to(device).train()
    adam = torch.optim.AdamW(model.parameters(), lr=trm.learning_rate, betas=(0.9, 0.98), fused=True)
    low = trm.bf16 and has_bf16(device)

    def step(batch: Batch) -> float:
        inputs, targets, real = (
            torch.from_numpy(part).to(device) for part in (batch.inputs, batch.targets, batch.real)
        )
        negatives = torch.randint(world.items, (*inputs.shape, NEGATIVES), device=device)
        candidates = torch.cat([targets[..., None], negatives], dim=-1)
        adam.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            scores = model(inputs, candidates)
        scores = scores.float()[real]
        wanted = torch.zeros_like(scores)
        wanted[:, 0] = 1
        loss = F.binary_cross_entropy_with_logits(scores, wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        return loss.item()

    return step


# ------------------------------------------------------------------------------------------------------------ measuring


def compare(world: World, trm: TrmConfig, batches: Sequence[Batch], total: int) -> dict[str, float]:
    """Both in turns over the batches, the machine's rate between."""
    learner, plain = make_learner(world, trm), make_plain_step(world, trm)
    kind = torch.bfloat16 if trm.bf16 and has_bf16(torch.device("cpu")) else torch.float32
    square = torch.randn(SIZE, SIZE).to(kind)

    def multiply() -> float:
        return float((square @ square)[0, 0])

    short, long = batches[0], batches[-1]
    for batch in (short, long):
        learner.update(batch, "the first batches")
    plain(short)
    multiply()
    ours, theirs, rates, operations, positions = [], [], [], 0.0, 0
    for number, batch in enumerate(batches, 1):
        rates.append(2 * SIZE**3 / _seconds(multiply))
        ours.append(_seconds(lambda batch=batch: learner.update(batch, "a measured batch")))
        theirs.append(_seconds(lambda batch=batch: plain(batch)))
        operations += step_operations(batch, world, trm)
        positions += int(batch.real.sum())
        shape = f"{len(batch.inputs)} × {batch.inputs.shape[1]}"
        print(f"  batch {number}/{len(batches)}, {shape}: {ours[-1]:.2f} s and {theirs[-1]:.2f} s", flush=True)
    scale = total / positions
    rate = operations / sum(ours)
    return {
        "seconds per epoch": sum(ours) * scale,
        "seconds per epoch, plain": sum(theirs) * scale,
        "times faster": sum(theirs) / sum(ours),
        "positions per second": positions / sum(ours),
        "operations per second": rate,
        "operations per second, 2048³": float(np.mean(rates)),
        "share of the machine's rate": rate / float(np.mean(rates)),
        "steps measured": float(len(batches)),
        "threads": float(torch.get_num_threads()),
    }


def step_operations(batch: Batch, world: World, trm: TrmConfig) -> float:
    """Useful operations of one of our steps; see the module's description."""
    lengths = batch.real.sum(axis=1).astype(float)
    positions, pairs = lengths.sum(), (lengths * (lengths + 1) / 2).sum()
    questions = positions * (1 + trm.preference_share)
    width, layers = trm.width, trm.layers
    encoder = 84 * positions * width**2 * layers + 12 * pairs * width * layers
    adaptor = 4 * world.items * TEXT_WIDTH * (EXPERTS * width + EXPERTS)
    return float(encoder + 6 * questions * world.items * width + adaptor)


def _seconds(step: Callable[[], float]) -> float:
    started = time.perf_counter()
    value = step()
    if not math.isfinite(value):
        raise SystemExit(f"a step gave {value}")
    return time.perf_counter() - started


def _train_only(world: World, trm: TrmConfig, batches: Sequence[Batch]) -> None:
    learner = make_learner(world, trm)
    for batch in (*batches[-3:], *batches):
        learner.update(batch, "a batch")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def _peak_memory() -> float:
    """In GB. A process starts with the peak of the one that starts it, so this comes before all that is large here."""
    command = [sys.executable, "-m", "benchmarks.trm_training", "--memory-only", *sys.argv[1:]]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise SystemExit(f"the process that measures memory failed: {found.stderr}")
    return float(found.stdout.split()[-1])


def print_table(world: World, trm: TrmConfig, figures: dict[str, float]) -> None:
    """The figures beside what is wanted."""
    low = trm.bf16 and has_bf16(torch.device("cpu"))
    print(
        f"{world.source}: {len(world.sequences):,} sequences, {world.items:,} items; d={trm.width}, "
        f"{trm.layers} layers, length {trm.max_length}, batches of {trm.batch_size}, "
        f"{'bfloat16' if low else 'float32'}, "
        f"{figures['threads']:.0f} threads; {figures['steps measured']:.0f} steps of each, in turns\n"
        f"TRM, softmax over {world.items:,} items   {figures['seconds per epoch']:8.1f} s an epoch\n"
        f"plain SASRec, {NEGATIVES} negatives     {figures['seconds per epoch, plain']:8.1f} s an epoch\n"
        f"times faster                    {figures['times faster']:8.1f}   (wanted 5)\n"
        f"positions per second            {figures['positions per second']:8,.0f}\n"
        f"useful operations per second    {figures['operations per second'] / 1e9:8.1f} · 10⁹\n"
        f"2048³ product                   {figures['operations per second, 2048³'] / 1e9:8.1f} · 10⁹\n"
        f"share of it                     {figures[SHARE]:8.1%}   (wanted 35 %)\n"
        f"peak memory of the TRM's        {figures['peak memory, GB']:8.2f} GB (at most {MEMORY_LIMIT:.0f})"
    )


SHARE = "share of the machine's rate"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.trm_training --data ml-1m --out training.json\n"
        "  python -m benchmarks.trm_training --quick --threads 1",
    )
    parser.add_argument("--data", type=Path, help="a MovieLens-1M directory, or a deeprec dataset; else generated")
    parser.add_argument("--steps", type=int, help="steps to measure of each (default 16; with --quick 4)")
    parser.add_argument("--length", type=int, default=200, help="items a window holds at most (default 200)")
    parser.add_argument("--threads", type=int, help="threads (default torch's)")
    parser.add_argument("--quick", action="store_true", help="4 steps of each")
    parser.add_argument("--memory-only", action="store_true", help="train the TRM alone and print its peak memory, GB")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (4 if arguments.quick else 16)
    return arguments


if __name__ == "__main__":
    main()
