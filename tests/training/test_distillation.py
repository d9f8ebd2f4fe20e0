"""Runs in which the policy teaches itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import quick
from tests.training.test_update import trainer
from unipo.errors import DataError
from unipo.judge import judge, provide_for_loss

SKIP = ("old_logp", "logp", "divergence")


def shown(method: str, **settings: Any) -> tuple[Any, Any, list[str | None]]:
    """(trainer, judged batch, what each teacher reads)."""
    run = trainer(method, **settings)
    collected = run.collect()
    assert collected is not None
    batch = provide_for_loss(run.method, judge(run.method, collected.batch, run.scorer), run.scorer, SKIP)
    decode = run.policy.tokenizer.decode
    return run, batch, [None if c is None else decode(c) for c in batch.teacher_context]


def test_the_solution_is_rendered_inside_the_users_turn() -> None:
    run, batch, texts = shown("opsd", set={"selection.0.template": "+{shown}"})
    solutions = {p.example.id: p.example.responses[0].text for p in run.stream.prompts}
    decode = run.policy.tokenizer.decode
    for i, text in enumerate(texts):
        context = batch.take_prompts([i]).context.tolist()
        said, turn = decode(context).split("<|end|>")[0], decode(context).split("<|end|>")[1]
        assert text == f"{said}+{solutions[int(batch.prompt_id[i])]}<|end|>{turn}"


def test_no_response_is_shown_to_itself_and_only_right_ones_are_shown() -> None:
    _, batch, texts = shown("sdpo", prompts=6, set={"selection.0.template": "+{shown}", "selection.0.thinking": True})
    owner, right = batch.layout.seq_prompt.tolist(), ((batch.score >= 1) & batch.scored).tolist()
    assert any(t is not None for t in texts)
    for i, text in enumerate(texts):
        siblings = [j for j in range(len(texts)) if owner[j] == owner[i] and j != i and right[j]]
        assert (text is None) == (not siblings or int(batch.layout.seq_lengths[i]) == 0)
        if text is not None:
            assert text.split("<|end|>")[0].endswith("+" + batch.text[siblings[0]])


def test_one_pass_of_the_teacher_is_counted() -> None:
    for method in ("opsd", "sdpo"):
        run = trainer(method)
        told, _ = run.step()
        assert told["passes/extra"] == 1.0
        assert told["loss"] >= 0.0


@pytest.mark.slow
def test_the_teacher_of_sdpo_is_an_average_unless_the_user_says_otherwise() -> None:
    spec = trainer("sdpo").policy.spec
    assert (spec.reference, spec.reference_decay) == ("ema", 0.95)
    assert trainer("sdpo", policy={"reference": "frozen"}).policy.spec.reference == "frozen"
    assert trainer("opsd").policy.spec.reference == "auto"


def test_the_averaged_teacher_moves_a_twentieth_of_the_way() -> None:
    run = trainer("sdpo", prompts=6, optim={"learning_rate": 1e-3})
    reference = run.policy.reference
    assert reference is not None
    start = [p.detach().clone() for p in run.policy.model.parameters()]
    run.step()
    moved = 0.0
    for old, new, taught in zip(start, run.policy.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(taught, old + 0.05 * (new.detach() - old), rtol=0, atol=1e-6)
        moved = max(moved, float((new.detach() - old).abs().max()))
    assert moved > 1e-4


@pytest.mark.slow
def test_the_policy_comes_nearer_to_its_teacher() -> None:
    run = trainer("opsd", steps=12, prompts=6, optim={"learning_rate": 1e-3})
    losses = [run.step()[0]["loss"] for _ in range(12)]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


def test_data_without_any_solution_is_refused(tmp_path: Path, rows: Callable[[list[dict[str, Any]]], str]) -> None:
    data = rows([{"prompt": f"{i}+1=", "answer": str(i + 1)} for i in range(4)])
    settings = {"data.data": data, "data.reward": "numbers"}
    with pytest.raises(DataError, match="opsd learns from demonstrations too, but no prompt has one"):
        quick(tmp_path / "run", "opsd", steps=1, **settings)


def test_a_control_token_spelt_in_a_response_is_not_shown() -> None:
    policy = trainer("sdpo").policy
    ids = [*policy.encode("12"), int(policy.tokenizer.eos_token_id), *policy.encode("34")]
    assert policy.text(ids) == "1234"
