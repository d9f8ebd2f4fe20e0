"""Sampling on from the middle, and trees of samples, in the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import quick
from tests.training.test_critic import OFF
from tests.training.test_resume import assert_same_run
from tests.training.test_update import judged, trainer
from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.rollout.engine import Rollout
from unipo.tasks.task import Sample, Scores
from unipo.training.continuations import branch_seed
from unipo.training.loop import Trainer
from unipo.training.prompts import Prompt
from unipo.training.source import prompt_seed
from unipo.training.tree import Node, TreeSampler, edges_of

SMALL = {"source.branching": (3, 2, 2), "source.segment": 6, "source.edges": 5, "source.keep": 2}


def tree(**settings: Any) -> Trainer:
    return trainer("spo-tree", **({"set": SMALL, "sampling": {"max_tokens": 24}} | settings))


def test_every_cut_is_valued_by_continuations_that_the_reward_has_seen() -> None:
    run = trainer(
        "spo-segment", prompts=2, set={"source.group_size": 3, "advantage.continuations": 4, "selection": "[]"}
    )
    batch = judged(run)
    value = batch.segment_value
    cuts = ~value.isnan()
    assert bool(cuts.any())
    logp = batch.behaviour_logp
    assert not bool((cuts & (logp >= torch.tensor(0.9).log())).any())
    assert bool(((value[cuts] >= 0) & (value[cuts] <= 1)).all())
    assert run.scorer.sampled > 0


def test_continuations_do_not_repeat_the_response_they_leave() -> None:
    run = trainer("spo-segment", prompts=1)
    seeds = {branch_seed(0, i, place) for i in range(50) for place in range(50)}
    assert len(seeds) == 2500
    assert prompt_seed(0, 0) not in seeds
    batch = run.collect().batch  # type: ignore[union-attr]
    continuer = run.scorer.continuer
    assert continuer is not None
    first = torch.tensor([0])
    a, tokens, events = continuer(batch, first, 3)
    b, _, _ = continuer(batch, first, 3)
    assert not events
    assert torch.equal(a.reward, b.reward)
    assert tokens > 0


class Failing:
    """A reward that could score none of its samples, and says so."""

    name = "failing"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        none: list[float | None] = [None] * len(samples)
        return Scores(none, none, events={"reward failed": len(samples)})


def test_failures_of_the_reward_on_continuations_are_counted() -> None:
    run = trainer("spo-segment", set={"source.group_size": 2, "advantage.continuations": 2, "source.epochs": 1})
    assert run.scorer.continuer is not None
    run.scorer.continuer = replace(run.scorer.continuer, reward=Failing())
    measured, _ = run.step()
    assert measured["events/reward failed"] > 0


def test_a_step_of_the_chain_counts_what_it_sampled_on() -> None:
    run = trainer("spo-segment", set={"source.group_size": 2, "advantage.continuations": 2, "source.epochs": 1})
    measured, _ = run.step()
    assert measured["tokens/continued"] > 0
    assert "tokens/continued" not in trainer("grpo-token").step()[0]


# -- trees -----------------------------------------------------------------------------------------------
def node(prefix: tuple[int, ...], value: float | None = None, *children: Node) -> Node:
    piece = Rollout(torch.tensor([len(prefix)]), torch.zeros(1), torch.zeros(1), bool(children))
    return Node(prefix, piece, not children, list(children), value)


def test_an_inner_node_is_worth_the_mean_of_its_children() -> None:
    inner = node((), None, node((0,), 1.0), node((0,), 0.0), node((0,), None))
    roots = [inner, node((), 1.0), node((), 0.0), node((), None, node((0,), None))]
    assert [root.evaluate() for root in roots] == [0.5, 1.0, 0.0, None]
    prompt = Prompt.__new__(Prompt)
    edges = edges_of(roots, prompt, 7)
    # roots: mean .5, so the inner edge is dropped; below it: 1 and 0 around .5; what nobody scored is no edge
    assert [(e.prefix, e.reward, e.parent, e.version) for e in edges] == [
        ((), 1.0, 0.5, 7),
        ((), 0.0, 0.5, 7),
        ((0,), 1.0, 0.5, 7),
        ((0,), 0.0, 0.5, 7),
    ]
    assert edges[2].spread == 0.5
    assert len({e.number for e in edges}) == 4


def test_equal_leaves_give_no_edges() -> None:
    roots = [node((), None, node((0,), 0.1), node((0,), 0.1), node((0,), 0.1)), node((), 0.1)]
    for root in roots:
        root.evaluate()
    assert edges_of(roots, Prompt.__new__(Prompt), 0) == []


def grown(run: Trainer) -> tuple[TreeSampler, list[list[Node]], list[Prompt]]:
    sampler = run.source
    assert isinstance(sampler, TreeSampler)
    prompts = run.stream.take(2)
    trees, sampled = sampler._grow(prompts, None)
    sampler._value(prompts, trees)
    assert sampled == sum(len(n.segment.tokens) for t in trees for root in t for n in walk(root))
    return sampler, trees, prompts


def walk(root: Node) -> list[Node]:
    return [root, *(n for child in root.children for n in walk(child))]


def test_a_tree_has_its_shape_and_siblings_advantages_sum_to_zero() -> None:
    _, trees, prompts = grown(tree())
    for roots, prompt in zip(trees, prompts, strict=True):
        assert len(roots) == 3
        for n in (n for root in roots for n in walk(root)):
            assert len(n.children) in (0, 2)
            assert bool(n.children) != n.ended
            assert len(n.path) <= 24
            if n.children:
                assert len(n.segment.tokens) == 6
                assert all(child.prefix == n.path for child in n.children)
        sums: dict[tuple[int, ...], float] = {}
        for edge in edges_of(roots, prompt, 0):
            sums[edge.prefix] = sums.get(edge.prefix, 0.0) + edge.reward - edge.parent
        assert all(abs(x) < 1e-12 for x in sums.values())


def checked(batch: Batch, run: Trainer) -> None:
    """Prefixes are prompts: log-probs of the segments under the weights that wrote them are the engine's."""
    fresh = batch.version == run.policy.updates
    gap = (run.policy.logp(batch) - batch.behaviour_logp)[fresh].abs()
    assert float(gap.max()) < 1e-4


def test_edges_are_examples_whose_prompt_is_the_path_to_them() -> None:
    run = tree(prompts=3)
    collected = run.collect()
    assert collected is not None
    batch = collected.batch
    assert bool((batch.reward != batch.parent_reward).all())
    checked(batch, run)
    assert len(set(batch.sample_id.tolist())) == batch.layout.n_sequences
    total, count = collected.parts["leaf"]
    assert 0.0 <= total <= count


def test_edges_are_used_once_a_few_at_a_step_and_then_expire() -> None:
    run = tree(prompts=2, set=SMALL | {"source.edges": 2})
    sampler = run.source
    assert isinstance(sampler, TreeSampler)
    seen: list[int] = []
    expired = 0.0
    for _ in range(4):
        collected = run.collect()
        if collected is None:
            continue
        ids = collected.batch.sample_id.tolist()
        seen += ids
        draws = [i // 1_000_000 for i in ids]
        assert all(draws.count(d) <= 2 for d in set(draws))
        assert all(sampler.steps - h.born < 2 for h in sampler.held)
        expired += collected.events["tree edges expired unused"]
    assert len(set(seen)) == len(seen)
    assert len(seen) > 5
    assert expired > 0


def test_a_step_whose_trees_teach_nothing_is_left_out_and_counted() -> None:
    metrics, batch = tree(data={"reward": "unlabelled"}).step()
    assert batch is None
    assert metrics["events/no_prompt_qualified"] == 1


def test_the_sampling_tape_is_read_for_edges_of_this_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 1)
    norms: dict[int, list[float]] = {}
    off: list[int] = []
    for tape_mb in (0, 512):
        run = tree(set=SMALL | {"source.minibatches": 1, "source.epochs": 1}, policy={"tape_mb": tape_mb})
        norms[tape_mb] = []
        for _ in range(3):
            measured, batch = run.step()
            norms[tape_mb].append(measured.get("grad_norm", 0.0))
            off.append(0 if batch is None else int((batch.taped < 0).sum()))
    assert max(norms[0]) > 0
    assert norms[512] == pytest.approx(norms[0], rel=1e-5)
    assert off[3] == 0  # with a tape, everything of the first step is on it
    assert max(off[4:]) > 0  # and what was held back from it is not


def test_trees_cannot_be_refilled() -> None:
    with pytest.raises(ConfigError, match="cannot be asked again within one"):
        tree(set=SMALL | {"selection": "DynamicSampling()"})


@pytest.mark.parametrize("method", ["spo-segment", "spo-tree"])
@pytest.mark.slow
def test_a_stopped_run_resumes_bit_for_bit(method: str, tmp_path: Path) -> None:
    small = SMALL if method == "spo-tree" else {"source.group_size": 2, "advantage.continuations": 2}
    settings = {"set": small, **OFF, "sampling.max_tokens": 30}
    quick(tmp_path / "whole", method, steps=2, **settings)
    quick(tmp_path / "parted", method, steps=1, **settings)
    quick(tmp_path / "parted", method, steps=2, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parted", 2)
