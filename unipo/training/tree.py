"""A tree of samples per prompt, whose edges are the examples (SPO-tree)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from unipo.batch import Batch
from unipo.method import Method
from unipo.parts.source import SegmentTree
from unipo.policy.model import Policy
from unipo.rollout.engine import Request, Rollout
from unipo.training.continuations import branch_seed, with_prefix
from unipo.training.prompts import Prompt
from unipo.training.source import Collected, Sampler, rollout_batch, score_groups

ROUNDING = 1e-12  # a value this near to its parent's differs by the order of a sum


@dataclass
class Node:
    """One segment and what follows it. prefix: tokens of the response before it; value: None if nothing was scored."""

    prefix: tuple[int, ...]
    segment: Rollout
    ended: bool
    children: list[Node] = field(default_factory=list)
    value: float | None = None

    @property
    def path(self) -> tuple[int, ...]:
        """Tokens of the response up to the end of this segment."""
        return (*self.prefix, *self.segment.tokens.tolist())

    def leaves(self) -> Iterator[Node]:
        """The ends of all branches below, in order; the node itself if it has none."""
        if not self.children:
            yield self
        for child in self.children:
            yield from child.leaves()

    def evaluate(self) -> float | None:
        """Set every value below from the leaves': the mean of the children that have one."""
        if self.children:
            values = [v for child in self.children if (v := child.evaluate()) is not None]
            # Equal children give exactly their value, or rounding would look like a difference to their siblings.
            self.value = sum(values) / len(values) if len(set(values)) > 1 else (values[0] if values else None)
        return self.value


@dataclass(frozen=True)
class Edge:
    """A segment as an example. reward: value at its end; parent: at its start; spread: deviation over its siblings."""

    prompt: Prompt
    prefix: tuple[int, ...]
    segment: Rollout
    reward: float
    parent: float
    spread: float
    version: int
    number: int


def edges_of(roots: Sequence[Node], prompt: Prompt, version: int) -> list[Edge]:
    """Every edge of an evaluated tree whose value differs from its parent's, siblings together, parents first."""
    found: list[Edge] = []

    def visit(siblings: Sequence[Node]) -> None:
        valued = [(node, node.value) for node in siblings if node.value is not None]
        values = torch.tensor([v for _, v in valued], dtype=torch.float64)
        if len(values) and bool(values.max() > values.min()):
            parent, spread = float(values.mean()), float(values.std(unbiased=False))
            for node, v in valued:
                if abs(v - parent) > ROUNDING:
                    found.append(Edge(prompt, node.prefix, node.segment, v, parent, spread, version, len(found)))
        for node in siblings:
            visit(node.children)

    visit(roots)
    return found


@dataclass
class Held:
    """Edges of one tree that were not used yet. born: the step that sampled it."""

    born: int
    edges: list[Edge]


class TreeSampler(Sampler):
    """Grows a tree for each prompt; trains on some of its edges now and on others at later steps."""

    def begin(self, method: Method) -> None:
        assert isinstance(method.source, SegmentTree)
        self.shape: SegmentTree = method.source
        self.held: list[Held] = []
        self.steps = 0

    def state(self) -> Any:
        return {"held": self.held, "steps": self.steps}

    def load(self, state: Any) -> None:
        self.held, self.steps = state["held"], state["steps"]

    def __call__(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Collected:
        start = time.perf_counter()
        self.steps += 1
        mine = self.ranks.share([1] * len(prompts))[self.ranks.rank]
        own = [prompts[i] for i in mine]
        trees, sampled = self._grow(own, progress)
        grown = time.perf_counter()
        events, leaves = self._value(own, trees)
        scored = time.perf_counter()
        edges: list[list[Edge]] = [[] for _ in prompts]
        totals, parts, tokens = Counter[str](), [0.0, 0.0], 0
        here = (
            mine,
            [edges_of(t, p, self.policy.updates) for p, t in zip(own, trees, strict=True)],
            events,
            leaves,
            sampled,
        )
        for indices, rank_edges, rank_events, rank_leaves, rank_tokens in self.ranks.gather_objects(here):
            for i, found in zip(indices, rank_edges, strict=True):
                edges[i] = found
            totals.update(rank_events)
            parts = [a + b for a, b in zip(parts, rank_leaves, strict=True)]
            tokens += rank_tokens
        self.held += [Held(self.steps, e) for e in edges]
        batch = edge_batch(self._draw(totals), self.policy)
        sums = {"leaf": (parts[0], int(parts[1]))} if parts[1] else {}
        return Collected(batch, totals, sums, grown - start, scored - grown, tokens)

    # -- growing -----------------------------------------------------------------------------------
    def _grow(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None) -> tuple[list[list[Node]], int]:
        """The roots' segments of every prompt, with everything below them; and how many tokens were sampled."""
        trees: list[list[Node]] = [[] for _ in prompts]
        # (prompt, tokens so far, number of the node in its prompt's tree, where its children go)
        open_: list[tuple[int, tuple[int, ...], list[Node]]] = [(i, (), trees[i]) for i in range(len(prompts))]
        sampled, numbered = 0, [0] * len(prompts)
        last = len(self.shape.branching) - 1
        for depth, branches in enumerate(self.shape.branching):
            requests = []
            for i, path, _ in open_:
                seed = branch_seed(self.seed, prompts[i].draw * 1_000_000 + numbered[i], len(path))
                numbered[i] += 1
                limit = 0 if depth == last else self.shape.segment
                requests.append(Request(prompts[i].ids, branches, seed, path, limit, images=prompts[i].pixels))
            if not requests:
                break
            following = []
            for (i, path, into), group in zip(
                open_, self.engine.generate(requests, self.sampling, progress), strict=True
            ):
                for r in group:
                    ended = not r.truncated or len(path) + len(r.tokens) >= self.sampling.max_tokens
                    node = Node(path, r, ended)
                    into.append(node)
                    sampled += len(r.tokens)
                    if not ended:
                        following.append((i, node.path, node.children))
            open_ = following
        return trees, sampled

    def _value(self, prompts: Sequence[Prompt], trees: Sequence[Sequence[Node]]) -> tuple[Counter[str], list[float]]:
        """Score the leaves and carry their rewards upwards. Returns (events, [sum of leaf rewards, how many])."""
        if not prompts:
            return Counter(), [0.0, 0.0]
        leaves = [[leaf for root in tree for leaf in root.leaves()] for tree in trees]
        marks = score_groups(
            self.policy, self.reward, prompts, [[with_prefix(x.prefix, x.segment) for x in group] for group in leaves]
        )
        seen = [0.0, 0.0]
        for group, scores in zip(leaves, marks.scores, strict=True):
            for leaf, mark in zip(group, scores, strict=True):
                total = mark["total"]
                if total is not None:
                    leaf.value = self.shape.truncated_reward if leaf.segment.truncated else float(total)
                    seen = [seen[0] + leaf.value, seen[1] + 1]
        for tree in trees:
            for root in tree:
                root.evaluate()
        return Counter(marks.events), seen

    # -- using ---------------------------------------------------------------------------------------
    def _draw(self, events: Counter[str]) -> list[Edge]:
        """At most `edges` random edges of every tree, which leave it; trees too old are dropped, counted."""
        chosen: list[Edge] = []
        kept = []
        for held in self.held:
            if self.steps - held.born >= self.shape.keep:
                if held.edges:
                    events["tree edges expired unused"] += len(held.edges)
                continue
            if held.edges:
                draw = torch.Generator().manual_seed(branch_seed(self.seed, held.edges[0].prompt.draw, self.steps))
                picked = set(torch.randperm(len(held.edges), generator=draw)[: self.shape.edges].tolist())
                chosen += [e for k, e in enumerate(held.edges) if k in picked]
                held = Held(held.born, [_off_tape(e) for k, e in enumerate(held.edges) if k not in picked])
            if held.edges:
                kept.append(held)
        self.held = kept
        return chosen


def _off_tape(edge: Edge) -> Edge:
    """An edge for a later step, when the engine's tape is that of other samples."""
    return replace(edge, segment=replace(edge.segment, taped=None))


def edge_batch(edges: Sequence[Edge], policy: Policy) -> Batch:
    """Edges as a batch: those that leave one node are a group, whose prompt is the path to it."""
    groups: dict[tuple[int, tuple[int, ...]], list[Edge]] = {}
    for edge in edges:
        groups.setdefault((edge.prompt.draw, edge.prefix), []).append(edge)
    prompts = [replace(g[0].prompt, ids=(*g[0].prompt.ids, *g[0].prefix), responses=()) for g in groups.values()]
    flat = [edge for group in groups.values() for edge in group]
    texts = [[policy.written(e.segment.tokens.tolist()) for e in g] for g in groups.values()]
    marks: list[list[dict[str, Any]]] = [
        [{"total": e.reward, "score": e.reward, "extracted": None, "parts": {}} for e in g] for g in groups.values()
    ]
    batch = rollout_batch(prompts, [[e.segment for e in g] for g in groups.values()], texts, marks, 0)
    versions = torch.tensor([e.version for e in flat], dtype=torch.int64)
    return batch.with_columns(
        None,
        version=batch.layout.to_tokens(versions),
        sample_id=torch.tensor([e.prompt.draw * 1_000_000 + e.number for e in flat], dtype=torch.int64),
        parent_reward=torch.tensor([e.parent for e in flat], dtype=torch.float64),
        sibling_std=torch.tensor([e.spread for e in flat], dtype=torch.float64),
    )
