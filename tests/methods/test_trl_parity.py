"""unipo's losses, advantages and gradients against those TRL 1.16 computes from the same numbers.

tests/golden/trl-1.16.json was written by benchmarks/parity_trl.py, which runs TRL's own code in float64.  Every
difference of convention is named here and in docs/peers.md; nothing else may differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unipo.batch import Batch
from unipo.judge import judge, loss, provide_for_loss, weigh
from unipo.layout import Layout
from unipo.method import Method
from unipo.parts.average import SequenceMean
from unipo.parts.selection import DropTruncated
from unipo.registry import get_method

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "trl-1.16.json").read_text())
BUDGET = GOLDEN["max_completion_length"]
DIGITS = 1e-12

four = {"source.group_size": 4}
no_kl: dict[str, Any] = {**four, "regularisers": ()}
grpo, grpo_token, gspo = (get_method(n) for n in ("grpo", "grpo-token", "gspo"))

# TRL's case -> the composition with the same numbers.
COMPOSITIONS: dict[str, Method] = {
    # TRL 1.16 corrects the KL by the ratio unless told not to (use_bias_correction_kl); the GRPO paper does not.
    "grpo": grpo.but(**four),
    "grpo-corrected-kl": grpo.but(**four, **{"regularisers.0.corrected": True}),
    # A truncated response that is masked still counts among TRL's N responses; by default it does not among ours.
    "grpo-masked-truncated": grpo.but(**no_kl, selection=(DropTruncated(),), average=SequenceMean(count="all")),
    # TRL's delta bounds the unclipped ratio; for A < 0 that is the dual clip, for A > 0 the clip is reached before.
    "grpo-two-sided": grpo.but(**no_kl, **{"objective.dual": 1.25}),
    "grpo-unscored": grpo_token.but(**four),
    "dr_grpo": get_method("dr-grpo").but(**four),
    # TRL's "dapo" is the clip range and the token mean: no dynamic sampling, no length penalty; eps is TRL's.
    "dapo": get_method("dapo").but(**four, selection=(), shaping=(), **{"advantage.eps": 1e-4}),
    # TRL's epsilon_high is the absolute cap on the weight, as ours, not an offset from 1.
    "cispo": get_method("cispo").but(**four, **{"objective.cap": 1.3}),
    "gspo": gspo.but(**four),
    "gspo-wide": gspo.but(**four, **{"objective.low": 0.1, "objective.high": 0.15}),
    "rloo": get_method("rloo"),
}


@dataclass
class Table:
    """A scorer that gives the log-probs TRL was given."""

    old: Tensor
    reference: Tensor

    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        return self.old if weights == "policy" else self.reference

    def encode(self, text: str) -> list[int]:
        raise AssertionError("no method here edits a prompt")


def flat(rows: list[list[float]]) -> Tensor:
    return torch.tensor([x for row in rows for x in row], dtype=torch.float64)


def trl_batch(name: str) -> tuple[Batch, Table, Tensor]:
    """(the responses as a batch, their scorer, live log-probs). RLOO has no tool mask in TRL."""
    rows = GOLDEN["responses"]
    rewards = [None if name == "grpo-unscored" and i == 1 else r["reward"] for i, r in enumerate(rows)]
    tool = flat([r["tool"] for r in rows]).bool()
    prompts = GOLDEN["prompts"]
    layout = Layout.of([len(r["ids"]) for r in rows], [4] * len(prompts), [len(p) for p in prompts])
    batch = Batch.of(
        layout,
        context=flat(prompts).long(),
        tokens=flat([r["ids"] for r in rows]).long(),
        trainable=torch.ones_like(tool) if name == "rloo" else ~tool,
        truncated=torch.tensor([r["truncated"] for r in rows]),
        reward=torch.tensor([float("nan") if r is None else r for r in rewards], dtype=torch.float64),
        scored=torch.tensor([r is not None for r in rewards]),
    )
    table = Table(flat([r["old_logp"] for r in rows]), flat([r["reference_logp"] for r in rows]))
    return batch, table, flat([r["logp"] for r in rows]).requires_grad_()


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got.detach(), expected, rtol=DIGITS, atol=DIGITS)


def test_the_golden_file_says_how_it_was_made() -> None:
    assert GOLDEN["made"]["trl"].startswith("1.16")
    assert GOLDEN["made"]["by"] == "python benchmarks/parity_trl.py"
    assert set(GOLDEN["cases"]) == {*COMPOSITIONS, "dpo", "dpo-sigmoid-ignores-smoothing", "dpo-smoothed"}


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_on_policy_methods_give_trls_numbers(name: str) -> None:
    case, method = GOLDEN["cases"][name], COMPOSITIONS[name].bound_to(BUDGET)
    batch, table, logp = trl_batch(name)
    judged = judge(method, batch, table)
    judged = weigh(method, provide_for_loss(method, judged, table, skip=("logp",)))
    close(judged.sequence_advantage, torch.tensor(case["advantages"], dtype=torch.float64))

    total = loss(method, judged.with_columns(None, logp=logp)).total
    (gradient,) = torch.autograd.grad(total, logp)
    scale = 1.0
    if name == "grpo-unscored":
        # TRL gives an unscored response A = 0 and still counts its tokens; here it leaves the denominator too.
        counted, all_tokens = int(judged.mask.sum()), int(judged.trainable.sum())
        assert counted == all_tokens - 4
        scale = counted / all_tokens
    close(total * scale, torch.tensor(case["loss"], dtype=torch.float64))
    close(gradient * scale, flat(case["gradient"]))
    assert float(gradient.abs().max()) > 1e-3


def pairs_batch() -> tuple[Batch, Tensor]:
    sides = [pair[side] for pair in GOLDEN["pairs"] for side in ("chosen", "rejected")]
    prompts = [pair["prompt"] for pair in GOLDEN["pairs"]]
    layout = Layout.of([len(s["ids"]) for s in sides], [2] * len(prompts), [len(p) for p in prompts])
    ids = flat([s["ids"] for s in sides]).long()
    batch = Batch.of(
        layout,
        context=flat(prompts).long(),
        tokens=ids,
        trainable=torch.ones_like(ids, dtype=torch.bool),
        preference=torch.tensor([1.0, 0.0] * len(prompts)),
        reference_logp=flat([s["reference_logp"] for s in sides]),
    )
    return batch, flat([s["logp"] for s in sides]).requires_grad_()


@pytest.mark.parametrize(
    ("name", "smoothing"),
    [
        ("dpo", 0.0),
        # TRL's sigmoid loss does not read label_smoothing; ours does, so the same numbers need 0 here.
        ("dpo-sigmoid-ignores-smoothing", 0.0),
        # Label-smoothed DPO in TRL: loss_type "aot" with one pair at a time, where its sorting does nothing.
        ("dpo-smoothed", 0.2),
    ],
)
def test_dpo_gives_trls_numbers(name: str, smoothing: float) -> None:
    case, method = GOLDEN["cases"][name], get_method("dpo").but(**{"objective.label_smoothing": smoothing})
    batch, logp = pairs_batch()
    weighed = weigh(method, judge(method, batch))
    total = loss(method, weighed.with_columns(None, logp=logp)).total
    (gradient,) = torch.autograd.grad(total, logp)
    close(total, torch.tensor(case["loss"], dtype=torch.float64))
    n = len(GOLDEN["pairs"])  # TRL lays all chosen responses before all rejected ones; ours stand side by side
    rows = [case["gradient"][k + side * n] for k in range(n) for side in (0, 1)]
    close(gradient, flat(rows))


def test_the_golden_cases_reach_every_branch() -> None:
    """Clipped and unclipped on both sides, so that agreement means something."""
    rows = GOLDEN["responses"]
    ratio = (flat([r["logp"] for r in rows]) - flat([r["old_logp"] for r in rows])).exp()
    lengths = torch.tensor([len(r["ids"]) for r in rows])
    advantage = torch.tensor(GOLDEN["cases"]["grpo"]["advantages"]).repeat_interleave(lengths)
    for sign in (1, -1):
        side = ratio[advantage * sign > 0]
        assert bool((side > 1.28).any())
        assert bool((side < 0.8).any())
        assert bool(((side > 0.8) & (side < 1.2)).any())
    assert bool((advantage == 0).any())
