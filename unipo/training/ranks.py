"""Several processes with the same weights: who does what, and what they tell each other.

Every rank holds the whole update batch (token ids are small), computes advantages and weights on it, and then
runs the model over its own share.  Statistics and denominators are therefore those of one process by
construction, and gradients are plain sums.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unipo.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """rank in [0, world). What ranks tell each other has a deadline, see `start_ranks`."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def gather_objects(self, item: Any) -> list[Any]:
        """Every rank's item, by rank."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def share(self, costs: Sequence[int]) -> list[list[int]]:
        """Indices for each rank so that summed costs are close; the largest go first, to the least loaded."""
        loads = [0] * self.world
        shares: list[list[int]] = [[] for _ in range(self.world)]
        for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            rank = min(range(self.world), key=lambda r: (loads[r], r))
            loads[rank] += costs[i]
            shares[rank].append(i)
        return [sorted(s) for s in shares]

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks (a rank without one adds zero).

        A weight without a gradient on any rank keeps none, as with one process: the optimiser leaves it alone.
        """
        if self.world == 1 or not parameters:
            return
        found = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        dist.all_reduce(found)
        reached = [p for p, n in zip(parameters, found.tolist(), strict=True) if n]
        if not reached:
            return
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in reached])
        dist.all_reduce(flat)
        at = 0
        for p in reached:
            p.grad = flat[at : at + p.numel()].view_as(p)
            at += p.numel()

    def sum_tensor(self, x: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(x)
        return x

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            dist.barrier()


def start_ranks(deadline: float = 600.0) -> Ranks:
    """Join the process group that `torchrun` announces in the environment; alone without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks()
    if "RANK" not in os.environ or "MASTER_ADDR" not in os.environ:
        raise ConfigError("WORLD_SIZE is set but RANK or MASTER_ADDR is not: start several processes with torchrun")
    if not dist.is_initialized():
        # Statistics are summed on the processor, gradients where the weights lie.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=deadline))
    return Ranks(dist.get_rank(), dist.get_world_size())


def stop_ranks(ranks: Ranks) -> None:
    """Leave the process group."""
    if ranks.world > 1 and dist.is_initialized():
        dist.destroy_process_group()
