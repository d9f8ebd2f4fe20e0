"""The optimiser steps of a batch, on a real (tiny) model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.training.conftest import ASKED, every_method, own_task
from unipo.batch import Batch
from unipo.errors import TrainingError
from unipo.judge import judge, loss, provide_for_loss, required_tokens, weigh
from unipo.parts.part import Objective
from unipo.policy.tape import Tape
from unipo.training.config import OptimConfig, TrainConfig, from_dict, nested
from unipo.training.loop import Trainer
from unipo.training.optim import Optimiser, rate_factor, resolve_optim
from unipo.training.ranks import Ranks
from unipo.training.setup import build
from unipo.training.update import forward, merge_reports, micro_batches, run_updates


def trainer(method: str, **settings: Any) -> Trainer:
    base = {"steps": 4, "prompts": 3, "sampling": {"max_tokens": 40}, "optim": {"learning_rate": 1e-4}}
    base["set"] = ASKED.get(method, {})
    return Trainer(build(from_dict(TrainConfig, base | {"method": method} | settings)))


def judged(run: Trainer) -> Batch:
    collected = run.collect()
    # A value model that has learned nothing gives a batch in which nothing has ended no gradient at all.
    while collected is not None and collected.batch.has("unfinished") and bool(collected.batch.unfinished.all()):
        collected = run.collect()
    assert collected is not None
    batch = collected.batch
    if run.old_logp == "behaviour":
        batch = batch.with_columns(None, old_logp=batch.behaviour_logp)
    return judge(run.method, batch, run.scorer)


def gradient(run: Trainer, batch: Batch, budget: int | None, ranks: int = 1) -> dict[str, Tensor]:
    """Summed gradient over micro-batches and (simulated) ranks."""
    run.optimiser.zero()
    required = required_tokens(run.method, batch)
    for rank in range(ranks):
        for piece, wanted in micro_batches(run.method, batch, required, budget, Ranks(rank, ranks)):
            loss(run.method, forward(run.method, piece, wanted, run.policy)).total.backward()
    return {n: p.grad.clone() for n, p in run.policy.named_parameters() if p.grad is not None}


# Methods whose own groups of 32 and 64 would only take longer.
LARGE = ("dads-rulereasoner", "unlikeliness-reward")


@pytest.mark.parametrize("method", every_method())
def test_any_budget_and_any_number_of_ranks_give_the_same_gradient(method: str) -> None:
    few = {"set": ASKED.get(method, {}) | {"source.group_size": 8}} if method in LARGE else {}
    run = trainer(method, **nested({"policy.weights": "float64"} | own_task(method)), **few)
    skip = ("old_logp",) if run.old_logp == "live" else ()
    batch = weigh(run.method, provide_for_loss(run.method, judged(run), run.scorer, skip))
    whole = gradient(run, batch, None)
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-4
    for budget, ranks in ((1, 1), (60, 1), (150, 2), (None, 3)):
        parted = gradient(run, batch, budget, ranks)
        for name, g in whole.items():
            torch.testing.assert_close(parted[name], g, rtol=0, atol=1e-10, msg=f"{name} with {budget=}, {ranks=}")


def test_no_prompt_is_forwarded_twice_and_no_dead_sequence_at_all() -> None:
    run = trainer("grpo-token", prompts=6)
    batch = weigh(run.method, judged(run))
    required = required_tokens(run.method, batch)
    pieces = list(micro_batches(run.method, batch, required, None, Ranks()))
    alive = batch.layout.seq_sum(required.to(torch.int64)) > 0
    assert sum(p.layout.n_sequences for p, _ in pieces) == int(alive.sum())
    assert sum(p.layout.n_prompts for p, _ in pieces) == len(set(batch.layout.seq_prompt[alive].tolist()))


def test_on_the_first_update_every_ratio_is_one_and_nothing_is_clipped() -> None:
    run = trainer("grpo-token", old_logp="behaviour")
    metrics, _ = run.step()
    assert metrics["gap/max"] < 1e-4
    assert metrics["clip_fraction"] == 0.0
    assert metrics["ratio/q01"] == pytest.approx(1, abs=1e-4)
    assert metrics["ratio/q99"] == pytest.approx(1, abs=1e-4)
    assert metrics["passes/extra"] == 0.0


def test_minibatches_and_epochs_each_make_a_step_and_move_the_ratio() -> None:
    run = trainer("grpo-token", prompts=4, set={"source.minibatches": 2, "source.epochs": 2})
    metrics, _ = run.step()
    assert run.optimiser.taken + metrics["updates/skipped"] == 4
    assert metrics["ratio/q99"] > 1.0001
    assert run.old_logp == "behaviour"


def test_a_reference_with_beta_zero_is_neither_loaded_nor_run() -> None:
    run = trainer("grpo", set={"regularisers.0.beta": 0.0})
    assert run.policy.reference is None
    metrics, batch = run.step()
    assert metrics["passes/extra"] == 0.0
    assert batch is not None
    assert not batch.has("reference_logp")


def test_evidence_passes_stop_when_their_strength_has_decayed_to_zero() -> None:
    run = trainer("cepo", steps=4, set={"credit.0.decay_steps": 2})
    passes = [run.step()[0]["passes/extra"] for _ in range(4)]
    assert passes == [2.0, 2.0, 0.0, 0.0]


def test_a_non_finite_gradient_stops_the_run_and_names_the_tensors() -> None:
    run = trainer("sft")
    name, parameter = run.policy.named_parameters()[0]
    parameter.grad = torch.full_like(parameter, float("nan"))
    before = parameter.detach().clone()
    with pytest.raises(TrainingError, match=name.replace(".", r"\.")):
        run.optimiser.step()
    assert torch.equal(parameter, before)


def test_clipping_scales_the_gradient_to_the_limit() -> None:
    p = torch.nn.Parameter(torch.zeros(2))
    optimiser = Optimiser(resolve_optim(OptimConfig(learning_rate=1.0, max_grad_norm=1.0), {}), [("p", p)], 1)
    p.grad = torch.tensor([3.0, 4.0])
    assert optimiser.step() == pytest.approx(5.0)
    assert p.grad.norm() == pytest.approx(1.0, abs=1e-6)


def test_the_schedule_warms_up_and_decays() -> None:
    assert [rate_factor(i, 10, 4, "constant") for i in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rate_factor(7, 10, 4, "linear") == pytest.approx(0.5)
    assert rate_factor(7, 10, 4, "cosine") == pytest.approx(0.5)
    assert rate_factor(10, 10, 0, "linear") == 0.0


def test_a_recommendation_fills_only_what_was_left_open() -> None:
    filled = resolve_optim(OptimConfig(weight_decay=0.5), {"learning_rate": 2e-5, "weight_decay": 0.1})
    assert (filled.learning_rate, filled.weight_decay, filled.max_grad_norm) == (2e-5, 0.5, 1.0)


def test_reports_of_ranks_add_up() -> None:
    run = trainer("grpo-token")
    batch = judged(run)
    report = run_updates(run.method, batch, run.policy, run.optimiser, Ranks(), run.scorer, "live")
    before = report.computed
    assert merge_reports([report, report]).computed == 2 * before


@pytest.mark.slow
def test_an_update_that_reads_the_sampling_tape_is_the_same_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 1)
    reads = []
    plain_reading = Tape.reading

    def counted(tape: Tape, *args: Any) -> object:
        reads.append(plain_reading(tape, *args))
        return reads[-1]

    monkeypatch.setattr(Tape, "reading", counted)
    norms = {}
    for tape_mb in (0, 512):
        run = trainer("dapo", policy={"tape_mb": tape_mb})
        norms[tape_mb] = [run.step()[0]["grad_norm"] for _ in range(2)]
    assert len(reads) == 2
    assert all(reading is not None for reading in reads)
    assert norms[512] == pytest.approx(norms[0], rel=1e-5)


def test_nothing_is_kept_for_several_updates_per_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 1)
    assert trainer("grpo")._record() is not None
    assert trainer("grpo", set={"source.epochs": 2})._record() is None


@dataclass(frozen=True)
class Plain(Objective):
    """An objective that does not come apart into pieces."""

    source = "a test"
    level: ClassVar[str] = "token"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "logp", "old_logp", "mask")

    def __call__(self, batch: Batch) -> Tensor:
        loss: Tensor = -(batch.logp - batch.old_logp).exp() * batch.advantage
        return loss

    def formula(self) -> str:
        return "l = -rho A"


def test_an_objective_without_pieces_trains_and_has_no_clip_fraction() -> None:
    run = trainer("grpo-token", set={"source.minibatches": 2})
    run = Trainer(replace(run.setup, method=run.method.but(objective=Plain())))
    values, _ = run.step()
    assert "ratio/q50" in values
    assert "clip_fraction" not in values


def test_the_gap_to_the_sampler_is_of_tokens_the_present_weights_wrote() -> None:
    run = trainer("grpo-token", prompts=4, set={"source.minibatches": 2}, optim={"learning_rate": 1e-2})
    assert run.step()[0]["gap/max"] < 1e-4  # the second update's tokens were written by other weights


def test_tokens_of_older_weights_get_the_old_policys_log_probs() -> None:
    run = trainer("grpo-token", prompts=2, set={"source.minibatches": 2}, optim={"learning_rate": 1e-2})
    collected = run.collect()
    assert collected is not None
    assert run.old_logp == run._plan_for(collected.batch) == "behaviour"
    run.policy.updates += 1  # as if these had waited for a step
    assert run._plan_for(collected.batch) == "recompute"


def test_a_second_end_token_of_the_model_is_not_shown_to_rewards() -> None:
    run = trainer("grpo-token")
    policy = run.policy
    second = policy.encode("7")[0]
    policy.causal.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, second]
    assert policy.end_ids == {policy.tokenizer.eos_token_id, second}
    ids = policy.encode("127")
    assert policy.written(ids) == "12"
    assert policy.written([*policy.encode("12"), policy.tokenizer.eos_token_id]) == "12"
    assert policy.written([*ids, *policy.encode("1")]) == "1271"
    assert policy.written([]) == ""
