"""What a teacher is shown, and what its distribution is worth as a loss, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from unipo import check_objective
from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.judge import judge, provide_for_loss, weigh
from unipo.layout import Layout
from unipo.method import Term
from unipo.parts.average import TokenMean
from unipo.parts.part import Divergence
from unipo.parts.teacher import (
    Distillation,
    SiblingTeacher,
    SolutionTeacher,
    first_right_sibling,
    with_text,
    without_thinking,
)
from unipo.registry import get_method

OPSD, SDPO = get_method("opsd"), get_method("sdpo")


class Says:
    """A scorer that spells: a token is a letter, a prompt's ids are its characters."""

    def logp(self, batch: Batch, weights: str = "policy") -> torch.Tensor:
        raise AssertionError("no log-probs are needed")

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def prompt(self, prompt: object) -> list[int]:
        return self.encode(prompt if isinstance(prompt, str) else str(prompt[-1]["content"]))  # type: ignore[index]

    def text(self, tokens: list[int]) -> str:
        return "".join(chr(t) for t in tokens)


def spell(ids: list[int] | None) -> str | None:
    return None if ids is None else "".join(map(chr, ids))


def answers(said: list[str], score: list[float], sizes: list[int], scored: list[bool] | None = None) -> Batch:
    tokens = [ord(c) for text in said for c in text]
    return Batch.of(
        Layout.of([len(t) for t in said], sizes),
        tokens=torch.tensor(tokens, dtype=torch.int64),
        trainable=torch.ones(len(tokens), dtype=torch.bool),
        score=torch.tensor(score, dtype=torch.float64),
        scored=torch.tensor(scored or [True] * len(said)),
        prompt=[f"Q{i}" for i in range(len(sizes))],
    )


# -- siblings ------------------------------------------------------------------------------------------------
def test_a_response_sees_the_first_right_one_that_is_not_itself() -> None:
    right = torch.tensor([False, True, True, False, True, False, False])
    batch = answers(["x"] * 7, [0] * 7, [4, 2, 1])
    assert first_right_sibling(right, batch).tolist() == [1, 2, 1, 1, -1, 4, -1]


def test_the_teacher_is_shown_the_sibling_without_its_thoughts() -> None:
    said = ["<think>a</think>no", "<think>b\nc</think> yes", "<think>d</think>also"]
    batch = answers([*said, "one"], [0, 1, 1, 1], [3, 1])
    method = SDPO.but(**{"selection.0.template": "|{shown}|"})
    judged = provide_for_loss(method, judge(method, batch), Says(), skip=("old_logp", "logp", "divergence"))
    assert [spell(c) for c in judged.teacher_context] == ["Q0|yes|", "Q0|also|", "Q0|yes|", None]
    whole = method.but(**{"selection.0.thinking": True})
    judged = provide_for_loss(whole, judge(whole, batch), Says(), skip=("old_logp", "logp", "divergence"))
    assert spell(judged.teacher_context[0]) == "Q0|<think>b\nc</think> yes|"


def test_a_response_without_a_right_sibling_leaves_numerator_and_denominator() -> None:
    batch = answers(["ab", "c", "de", "f"], [1, 0.9, 1, 1], [2, 2], [True, True, True, False])
    judged = judge(SDPO, batch)
    # Group 0: only response 0 is right, so it teaches 1.  Group 1: response 3 has no score, so it counts for nothing.
    assert judged.mask.tolist() == [False, False, True, False, False, False]
    weights = getattr(weigh(SDPO, judged), "weight.0")
    assert weights.tolist() == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think> b", "b"),
        ("a</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<think>never", "<think>never"),
        ("plain", "plain"),
    ],
)
def test_thinking_is_taken_out(text: str, left: str) -> None:
    assert without_thinking(text) == left


# -- solutions -----------------------------------------------------------------------------------------------
def test_a_prompt_without_a_solution_is_left_out() -> None:
    batch = answers(["ab", "c"], [0, 0], [1, 1]).with_columns(None, solution=["s {shown}", None])
    method = OPSD.but(**{"selection.0.template": "<{shown}>"})
    judged = provide_for_loss(method, judge(method, batch), Says(), skip=("divergence",))
    assert judged.mask.tolist() == [True, True, False]
    assert [spell(c) for c in judged.teacher_context] == ["Q0<s {shown}>", None]  # shown text is not a template


def test_text_is_put_after_what_the_user_said_last() -> None:
    talk = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "tool", "content": "t"}]
    assert with_text(talk, "!") == [talk[0], {"role": "user", "content": "u!"}, talk[2]]
    assert talk[1]["content"] == "u"
    assert with_text("u", "!") == "u!"
    with pytest.raises(DataError, match="put after the user's last words"):
        with_text([{"role": "user", "content": [{"type": "image"}]}], "!")


# -- the loss ------------------------------------------------------------------------------------------------
def live(part: Distillation, ratio: list[float]) -> tuple[torch.Tensor, torch.Tensor, Batch]:
    n = len(ratio)
    apart = torch.arange(1.0, n + 1, dtype=torch.float64, requires_grad=True)
    logp = torch.tensor(ratio, dtype=torch.float64).log().requires_grad_()
    mask = torch.ones(n, dtype=torch.bool)
    mask[-1] = False
    batch = Batch.of(Layout.of([n]), divergence=apart, logp=logp, old_logp=torch.zeros(n).double(), mask=mask)
    return apart, logp, batch


def test_the_ratio_is_capped_and_carries_no_gradient() -> None:
    part = Distillation(cap=2.0)
    apart, logp, batch = live(part, [0.5, 1.0, 9.0, math.inf])
    value = part(batch)
    torch.testing.assert_close(value.detach(), torch.tensor([0.5, 2.0, 6.0, 0.0], dtype=torch.float64))
    assert torch.autograd.grad(value.sum(), apart)[0].tolist() == [0.5, 1.0, 2.0, 0.0]
    assert not part(batch.with_columns(None, divergence=apart.detach())).requires_grad
    assert logp.grad is None


def test_without_a_cap_the_divergence_is_the_loss() -> None:
    part = Distillation()
    assert part(live(part, [0.5, 9.0, 1.0])[2]).tolist() == [1.0, 2.0, 0.0]
    assert "old_logp" not in part.needs


@pytest.mark.parametrize("part", [Distillation(), Distillation(kind="kl", top=3, cap=2.0)])
def test_it_keeps_what_every_objective_keeps(part: Distillation) -> None:
    assert check_objective(part).passed


def test_what_is_to_be_measured_is_declared() -> None:
    assert SDPO.divergence == Divergence("jsd", 0.5, 100, None, "reference")
    assert OPSD.divergence == Divergence("jsd", 0.5, 0, 1.1, "reference")
    assert OPSD.needs_reference()
    assert not OPSD.but(**{"objective.weights": "policy"}).needs_reference()
    assert get_method("grpo").divergence is None


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Distillation .objective. needs column 'teacher_context'; no part of the met"
    ):
        OPSD.but(selection=())
    with pytest.raises(ConfigError, match=r"SolutionTeacher .* needs column 'solution'; the source OnPolicy"):
        SDPO.but(selection=(SolutionTeacher(),))
    with pytest.raises(ConfigError, match="different divergences"):
        SDPO.but(extra=(Term(Distillation(kind="kl"), TokenMean(), 0.1),))
    with pytest.raises(ConfigError, match=r"SiblingTeacher compares .* needs group_size >= 2"):
        SDPO.but(**{"source.group_size": 1})
    with pytest.raises(ConfigError, match=r"must hold .shown. once"):
        SiblingTeacher(template="no mark")
    with pytest.raises(ConfigError, match="did you mean 'jsd'"):
        Distillation(kind="jds")
    with pytest.raises(ConfigError, match="top must be 0"):
        Distillation(kind="sampled", top=3)
    with pytest.raises(ConfigError, match="0 < beta < 1"):
        Distillation(beta=1.0)


def test_a_policy_gradient_may_stand_beside_it() -> None:
    """SDPO as an extra term of GRPO: each reads the columns of its own."""
    mixed = get_method("grpo-token").but(
        selection=(SiblingTeacher(),), extra=(Term(Distillation(weights="policy"), TokenMean(), 0.1),)
    )
    assert mixed.divergence == replace(Divergence(), weights="policy")
    assert not mixed.needs_reference()
