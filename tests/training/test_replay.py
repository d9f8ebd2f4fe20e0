"""The extra update of a guard: when it comes, on what, and that nothing of it is lost in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import unipo
from tests.training.conftest import metrics, on_two_ranks, own_task, quick, weights
from tests.training.test_ranks import TOLERANCE
from tests.training.test_resume import assert_same_run
from tests.training.test_update import trainer
from unipo.batch import Batch
from unipo.judge import loss, weigh
from unipo.parts.guard import Guard
from unipo.policy.tape import Tape
from unipo.training.config import nested
from unipo.training.loop import Trainer

GATE = "ImprovementGate(window=2)"
QUIET: dict[str, Any] = {"eval.before": False, "eval.after": False}


@dataclass(frozen=True)
class Always(Guard):
    """Asks for the stored batch again, with its advantages times `factor`, and notes what it was shown."""

    source = "a test"
    factor: float = 1.0
    seen: list[tuple[Batch, Batch | None]] = field(default_factory=list, compare=False)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "mask", "tokens")

    def __call__(self, batch: Batch, stored: Batch | None) -> Tensor | None:
        self.seen.append((batch, stored))
        return None if stored is None else self.factor * stored.advantage

    def formula(self) -> str:
        return f"A_i <- {self.factor} A_i"


def guarded(guard: Guard, method: str = "grpo-token", **settings: Any) -> Trainer:
    run = trainer(method, **settings)
    return Trainer(unipo.training.setup.replace(run.setup, method=run.method.but(guard=guard)))


def parameters(run: Trainer) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in run.policy.named_parameters()}


@pytest.mark.slow
def test_while_nothing_is_asked_every_bit_is_the_base_methods(tmp_path: Path) -> None:
    quick(tmp_path / "base", "grpo", steps=3, **QUIET)
    quick(tmp_path / "guarded", "pipo", steps=3, **QUIET)
    ours, theirs = weights(tmp_path / "base", 3), weights(tmp_path / "guarded", 3)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert [m["guard/updates"] for m in metrics(tmp_path / "guarded")] == [0.0] * 3


def test_the_batch_before_is_shown_with_its_old_log_probs() -> None:
    guard = Always()
    run = guarded(guard)
    first, second = (run.step() for _ in range(2))
    assert guard.seen[0][1] is None
    stored = guard.seen[1][1]
    assert stored is not None
    assert first[1] is not None
    assert torch.equal(stored.tokens, first[1].tokens)
    assert torch.equal(stored.advantage, first[1].advantage)
    assert torch.equal(stored.old_logp, first[1].behaviour_logp)
    assert not stored.has("text")
    assert [m["guard/updates"] for m, _ in (first, second)] == [0.0, 1.0]
    assert second[0]["passes/extra"] == 0.0


def test_the_extra_update_is_the_gradient_of_the_stored_batch_at_the_present_weights() -> None:
    """Plain gradient steps are seen through the optimiser's first moment: m <- .9 m + .1 g."""
    run = guarded(
        Always(factor=-2.0), policy={"weights": "float64"}, optim={"max_grad_norm": 0.0, "learning_rate": 1e-4}
    )
    run.step()
    stored = run.replays.stored
    assert stored is not None
    piece = weigh(run.method.replay, stored.with_columns(None, advantage=-2.0 * stored.advantage))
    required = piece.mask & (piece.advantage != 0)
    run.optimiser.zero()
    loss(run.method.replay, piece.with_columns(None, **run.policy.columns(piece, required))).total.backward()  # type: ignore[no-untyped-call]
    expected = {n: p.grad.clone() for n, p in run.policy.named_parameters() if p.grad is not None}
    moments = {n: run.optimiser.adam.state[p]["exp_avg"].clone() for n, p in run.policy.named_parameters()}
    made: dict[str, Tensor] = {}
    usual = run._update

    def note(*given: Any) -> Any:
        made.update({n: run.optimiser.adam.state[p]["exp_avg"].clone() for n, p in run.policy.named_parameters()})
        return usual(*given)

    run._update = note  # type: ignore[method-assign]
    run.step()
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-4
    for name, gradient in expected.items():
        torch.testing.assert_close(made[name], 0.9 * moments[name] + 0.1 * gradient, rtol=1e-9, atol=1e-12)


def test_after_an_extra_update_the_sampling_tape_is_of_other_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 1)
    read: list[bool] = []
    reading = Tape.reading

    def noted(tape: Tape, *args: Any) -> object:
        read.append(reading(tape, *args) is not None)
        return reading(tape, *args)

    monkeypatch.setattr(Tape, "reading", noted)
    norms = {}
    for tape_mb in (0, 512):
        run = guarded(Always(), policy={"tape_mb": tape_mb})
        norms[tape_mb] = [run.step()[0]["grad_norm"] for _ in range(2)]
    assert read == [True, False]  # no batch was stored at the first step
    assert norms[512] == pytest.approx(norms[0], rel=1e-5)


@pytest.mark.slow
def test_after_an_extra_update_the_ratio_is_still_against_the_policy_that_sampled() -> None:
    calm, pushed = guarded(Always(factor=0.0)), guarded(Always(factor=1.0), optim={"learning_rate": 1e-3})
    for run in (calm, pushed):
        run.step()
    assert calm.step()[0]["guard/updates"] == 0.0  # no advantage, no step
    told = pushed.step()[0]
    assert told["guard/updates"] == 1.0
    assert told["ratio/q99"] > 1.0001


def test_an_extra_update_takes_no_place_in_the_schedule() -> None:
    run = guarded(Always(), optim={"schedule": "linear", "learning_rate": 1e-4})
    rates = [run.step()[0]["learning_rate"] for _ in range(4)]
    assert rates == pytest.approx([1e-4, 0.75e-4, 0.5e-4, 0.25e-4])
    assert run.optimiser.taken == 4


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("pipo", {"guard.window": 2}),
        ("dapo", {"guard": GATE, "source.group_size": 4, "selection.0.surplus": "keep"}),
        ("gspo", {"guard": GATE, "source.minibatches": 2}),
    ],
)
@pytest.mark.slow
def test_the_stored_batch_survives_a_checkpoint_bit_for_bit(
    method: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    quick(whole, method, steps=5, set=settings, **QUIET)
    quick(parted, method, steps=3, set=settings, **QUIET)
    quick(parted, method, steps=5, resume=True)
    assert sum(m.get("guard/updates", 0.0) for m in metrics(parted)[3:]) >= 1
    assert_same_run(whole, parted, 5)


@pytest.mark.slow
def test_two_ranks_make_the_same_extra_updates(tmp_path: Path) -> None:
    settings = {"guard.window": 2}
    quick(tmp_path / "one", "pipo", steps=4, set=settings, **QUIET)
    on_two_ranks(
        tmp_path, f"quick(Path(sys.argv[1]), 'pipo', steps=4, set={settings!r}, **{QUIET!r})\n", tmp_path / "two"
    )
    ones, twos = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert sum(m["guard/updates"] for m in ones) >= 1
    for one, two in zip(ones, twos, strict=True):
        assert one.keys() == two.keys()
        for name in ("loss", "grad_norm", "guard/updates", "guard/improvement", "guard/loss", "tokens/computed"):
            assert two.get(name) == pytest.approx(one.get(name), abs=TOLERANCE), name


@pytest.mark.parametrize("method", ["cot2-grpo", "papo"])
def test_the_stored_batch_keeps_what_its_prompts_and_tokens_are_made_of(method: str) -> None:
    """Continuous tokens, and images."""
    if method == "papo":
        pytest.importorskip("PIL")
    own = own_task(method) or {"policy.model": "shapes", "data.task": "shapes?size=64&heldout=8"}
    run = guarded(Always(), method, **nested(own))
    for _ in range(3):
        assert run.step()[1] is not None
    stored = run.replays.stored
    assert stored is not None
    assert stored.has("step_ids") or stored.has("images")


def test_what_older_weights_wrote_is_kept_with_the_old_policys_log_probs() -> None:
    run = guarded(Always(), set={"source.minibatches": 2}, optim={"learning_rate": 1e-2})
    first = run.collect()
    assert first is not None
    run.step()
    run.collector.surplus = first.batch.take_prompts([0])
    old = parameters(run)
    run.step()
    kept = run.replays.stored
    assert kept is not None
    with torch.no_grad():
        for name, p in run.policy.named_parameters():
            p.copy_(old[name])
    torch.testing.assert_close(kept.old_logp, run.policy.logp(kept), rtol=0, atol=1e-4)
    surplus = slice(0, first.batch.take_prompts([0]).layout.n_tokens)
    assert torch.equal(kept.tokens[surplus], first.batch.take_prompts([0]).tokens)
    assert float((kept.old_logp[surplus] - first.batch.take_prompts([0]).behaviour_logp).abs().max()) > 0.1
