"""Evidence credit: its numbers, limits and schedule, and the evidence shown to the model."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from by_hand import batch_of, close
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.parts.credit import EvidenceCredit, linear_decay
from unipo.signals import Evidence, informative_prompts, right_answers, with_evidence, wrong_answers


def shown(advantage: float, delta: float, **settings: float) -> float:
    batch = batch_of([1], advantage=[advantage], evidence_logp=[-1.0 + delta], counter_logp=[-1.0])
    part = EvidenceCredit(**{"strength": 0.5, "clip": 0.2, "decay_steps": 0, **settings})  # type: ignore[arg-type]
    return float(part(batch))


@pytest.mark.parametrize(
    ("advantage", "delta", "expected"),
    [
        (1, 0.1, 1.052585),  # 1/2 + e^0.1 / 2
        (-1, 0.1, -0.952419),  # -(1/2 + e^-0.1 / 2)
        (1, 1, 1.1),  # clipped at 1.2
        (-1, 1, -0.9),  # clipped at 0.8
        (0, 1, 0),
        (2, -5, 1.8),
    ],
)
def test_numbers_by_hand(advantage: float, delta: float, expected: float) -> None:
    assert shown(advantage, delta) == pytest.approx(expected, abs=1e-6)


def random_credit(seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    evidence, counter = (torch.randn(9, generator=draw, dtype=torch.float64) for _ in range(2))
    advantage = torch.tensor([1.5, 1.5, 1.5, -0.5, -0.5, 0, 0, -1, -1], dtype=torch.float64)
    return batch_of([3, 2, 2, 2], [4], advantage=advantage, evidence_logp=evidence, counter_logp=counter)


def test_no_strength_no_clip_width_or_no_difference_leave_the_advantage_exactly() -> None:
    batch = random_credit(0)
    for part in (EvidenceCredit(strength=0), EvidenceCredit(clip=0)):
        assert torch.equal(part(batch), batch.advantage)
    same = batch.with_columns(None, counter_logp=batch.evidence_logp)
    assert torch.equal(EvidenceCredit()(same), batch.advantage)


@pytest.mark.parametrize("seed", range(5))
def test_sign_and_size_stay_the_verifiers(seed: int) -> None:
    batch, part = random_credit(seed), EvidenceCredit(strength=0.5, clip=0.2, decay_steps=0)
    ratio = part(batch)[batch.advantage != 0] / batch.advantage[batch.advantage != 0]
    assert float(ratio.min()) >= 1 - 0.5 * 0.2 - 1e-12
    assert float(ratio.max()) <= 1 + 0.5 * 0.2 + 1e-12


def test_swapping_the_evidence_inverts_the_weight_before_clipping() -> None:
    batch = random_credit(1)
    batch = batch.with_columns(None, evidence_logp=0.3 * batch.evidence_logp, counter_logp=0.3 * batch.counter_logp)
    swapped = batch.with_columns(None, evidence_logp=batch.counter_logp, counter_logp=batch.evidence_logp)
    part = EvidenceCredit(strength=1.0, clip=0.99999, decay_steps=0)
    alive = batch.advantage > 0
    delta = (batch.evidence_logp - batch.counter_logp)[alive]
    assert float(delta.abs().max()) < math.log(1.99)  # inside the clip, where the claim holds
    w, v = ((part(b) / b.advantage)[alive] for b in (batch, swapped))
    close(w * v, torch.ones(3))


def test_a_constant_on_both_scores_cancels_and_no_gradient_flows() -> None:
    batch = random_credit(2)
    moved = batch.with_columns(
        None, evidence_logp=batch.evidence_logp + 3, counter_logp=(batch.counter_logp + 3).requires_grad_()
    )
    part = EvidenceCredit(decay_steps=0)
    close(part(moved), part(batch))
    assert not part(moved).requires_grad


def test_infinite_scores_where_the_advantage_is_zero_are_not_read() -> None:
    batch = batch_of(
        [2, 1],
        advantage=[1.0, 0.0, 0.0],
        evidence_logp=[-1.0, -math.inf, -math.inf],
        counter_logp=[-1.0, -math.inf, 0.0],
    )
    assert EvidenceCredit()(batch).tolist() == [1, 0, 0]


def test_the_strength_decays_linearly_and_then_the_scores_are_not_made() -> None:
    # CEPO: lambda in step 1, 0 from step W + 1; RLSD's code: one notch earlier throughout
    assert [linear_decay(0.5, s, 25, 1) for s in (1, 2, 25, 26, 99)] == pytest.approx([0.5, 0.48, 0.02, 0, 0])
    assert [linear_decay(0.5, s, 50, 0) for s in (1, 49, 50)] == pytest.approx([0.49, 0.01, 0])
    assert linear_decay(0.5, 1000, 0, 0) == 0.5
    for part, last in ((EvidenceCredit(decay_steps=25, offset=1), 25), (EvidenceCredit(decay_steps=50, offset=0), 49)):
        (signal,) = part.signals
        batch = random_credit(0)
        assert signal.active(replace(batch, step=last))
        assert not signal.active(replace(batch, step=last + 1))
        without = replace(batch, step=last + 1).without("evidence_logp", "counter_logp")
        assert torch.equal(part(without), batch.advantage)
        assert linear_decay(part.strength, last, part.decay_steps, part.offset) > 0


def test_impossible_settings_are_refused() -> None:
    for settings in ({"strength": 1.5}, {"clip": 1.0}, {"decay_steps": -1}):
        with pytest.raises(ConfigError, match="0 <= strength <= 1"):
            EvidenceCredit(**settings)  # type: ignore[arg-type]


# -- the evidence ---------------------------------------------------------------------------------------
class Ordinals:
    """A scorer whose log-prob is minus the length of the token's prompt, so that the prompt can be read off."""

    def __init__(self) -> None:
        self.scored: list[int] = []

    def logp(self, batch: Batch, weights: str = "policy") -> Tensor:
        self.scored.append(batch.layout.n_prompts)
        return -batch.layout.context_lengths[batch.layout.token_prompt].double()

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]


def judged(**columns: object) -> Batch:
    """Three prompts of two responses: informative, all equal, informative."""
    layout = Layout.of([1, 2, 1, 1, 2, 1], [2, 2, 2], [3, 1, 2])
    given = {
        "context": torch.arange(6),
        "tokens": torch.zeros(8, dtype=torch.int64),
        "trainable": torch.ones(8, dtype=torch.bool),
        "prompt_id": torch.tensor([40, 41, 42]),
        "answer": ["12", "5", "ab"],
        "extracted": ["12", "13", "5", "5", "ab", None],
        "score": torch.tensor([1.0, 0, 1, 1, 1, 0]),
        "scored": torch.ones(6, dtype=torch.bool),
        "advantage": torch.tensor([1.0, -1, -1, 0, 0, 1, 1, -1]),
        **columns,
    }
    return Batch.of(layout, **given)  # type: ignore[arg-type]


def test_evidence_is_appended_to_the_prompt_and_nothing_else_moves() -> None:
    edited = with_evidence(judged(), [[90, 91], [], [92]])
    assert edited.context.tolist() == [0, 1, 2, 90, 91, 3, 4, 5, 92]
    assert edited.layout.context_lengths.tolist() == [5, 1, 3]
    assert torch.equal(edited.tokens, judged().tokens)
    with pytest.raises(ValueError, match="1 pieces of evidence for 3 prompts"):
        with_evidence(judged(), [[1]])


def test_the_wrong_answer_is_the_lowest_scored_rejected_one_that_exists_and_differs() -> None:
    # prompt 1 has only right answers, prompt 2's rejected response has none
    assert wrong_answers(judged()) == ["13", None, None]
    layout = Layout.of([1] * 6, [6], [1])
    batch = Batch.of(
        layout,
        answer=["9"],
        extracted=["1", "2", None, "9", "3", "4"],
        score=torch.tensor([0.4, 0.1, 0.0, 0.0, 0.1, -1.0]),
        scored=torch.tensor([True] * 5 + [False]),
    )
    # response 2 has no answer, 3 says the right one, 5 is unscored; 1 and 4 tie, the first wins
    assert wrong_answers(batch) == ["2"]
    assert wrong_answers(batch.with_columns(None, score=torch.full((6,), 0.5))) == [None]


def test_a_prompt_without_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 of 3 prompts have no ground-truth answer.*data row 41"):
        right_answers(judged(answer=["12", None, "ab"]))


def test_only_informative_prompts_are_scored_and_the_rest_is_evidence_of_nothing() -> None:
    batch, scorer = judged(), Ordinals()
    assert informative_prompts(batch).tolist() == [True, False, True]
    columns = Evidence(contrastive=True)(batch, scorer)
    # " 12" and " ab" make the prompts 3 + 3 and 2 + 3 tokens long; only prompt 0 has a wrong answer, " 13"
    assert columns["evidence_logp"].tolist() == [-6, -6, -6, 0, 0, -5, -5, -5]
    assert columns["counter_logp"].tolist() == [-6, -6, -6, 0, 0, -5, -5, -5]
    assert scorer.scored == [2, 1]
    longer = Evidence()(judged(extracted=["12", "1300", "5", "5", "ab", None]), Ordinals())
    assert longer["counter_logp"].tolist() == [-8, -8, -8, 0, 0, -5, -5, -5]


def test_a_prompt_without_advantage_is_not_scored_even_if_it_has_a_wrong_answer() -> None:
    batch = judged(extracted=["12", "13", "5", "6", "ab", None], score=torch.tensor([1.0, 0, 1, 0, 1, 0]))
    assert wrong_answers(batch) == ["13", "6", None]
    scorer = Ordinals()
    columns = Evidence()(batch, scorer)
    assert scorer.scored == [2, 1]
    for column in columns.values():
        assert column[3:5].tolist() == [0, 0]


def test_without_contrast_the_counter_is_the_plain_policy() -> None:
    old = -torch.arange(1.0, 9.0)
    columns = Evidence(contrastive=False)(judged(old_logp=old), Ordinals())
    assert columns["counter_logp"].tolist() == old.tolist()
    assert columns["evidence_logp"].tolist() == [-6, -6, -6, -4, -5, -5, -5, -5]


def test_evidence_keeps_the_scorers_precision() -> None:
    assert Evidence()(judged(), Ordinals())["evidence_logp"].dtype == torch.float64


def test_a_credit_that_has_ended_before_the_first_step_never_asks() -> None:
    (signal,) = EvidenceCredit(decay_steps=1, offset=0).signals
    assert not signal.active(replace(random_credit(0), step=1))
    (forever,) = EvidenceCredit(decay_steps=0).signals
    assert forever.active(replace(random_credit(0), step=10_000))
