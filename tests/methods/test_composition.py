"""Compositions are checked when they are made, and `but` says what was wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from bigram import Bigram, Spoiling, random_rollout
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.judge import judge, loss, provide_for_loss, weigh
from unipo.method import Method, Paper, Term, diff
from unipo.parts.average import ConstantNormaliser, GroupMean, SequenceMean, TokenMean
from unipo.parts.credit import EvidenceCredit
from unipo.parts.objective import Clipped, SequenceClipped
from unipo.parts.part import Advantage, Credit, Scorer, Selection, Signal
from unipo.parts.preference import DPO, LogLikelihood
from unipo.parts.regulariser import EntropyBonus, ReferenceKL
from unipo.parts.shaping import KLInReward, SoftOverlong
from unipo.parts.source import Demonstrations, Preferences
from unipo.registry import get_method

GRPO, DPO_METHOD, SFT = (get_method(name) for name in ("grpo", "dpo", "sft"))


@dataclass(frozen=True)
class NeedsTeacher(Advantage):
    @property
    def needs(self) -> tuple[str, ...]:
        return ("teacher_logp",)


@dataclass(frozen=True)
class NeedsOld(Selection):
    level: ClassVar[str] = "token"

    @property
    def needs(self) -> tuple[str, ...]:
        return ("old_logp",)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: GRPO.but(average=GroupMean()), r"Clipped gives one loss per token, which GroupMean does not average"),
        (lambda: DPO_METHOD.but(average=TokenMean()), r"DPO gives one loss per prompt.*use GroupMean\(\)"),
        (lambda: GRPO.but(objective=SequenceClipped(), average=TokenMean()), r"would weigh it by its length. Use Seq"),
        (
            lambda: GRPO.but(extra=(Term(SequenceClipped(), TokenMean()),)),
            r"SequenceClipped gives one loss per response; TokenMean would weigh it",
        ),
        (lambda: GRPO.but(extra=(Term(Clipped(), GroupMean()),)), r"which GroupMean does not average"),
        (lambda: GRPO.but(**{"source.group_size": 1}), r"GroupNormalised compares .* needs group_size >= 2, got 1"),
        (lambda: GRPO.but(advantage=NeedsTeacher()), r"NeedsTeacher needs column 'teacher_logp', which no part prov"),
        (lambda: GRPO.but(selection=(NeedsOld(),)), r"NeedsOld \(selection\) needs column 'old_logp', but selection"),
        (lambda: GRPO.but(advantage=None), r"Clipped \(objective\) needs column 'advantage'; set advantage="),
        (lambda: GRPO.but(source=Demonstrations()), r"needs column 'reward'; the source Demonstrations does not prov"),
        (lambda: GRPO.but(source=Preferences()), r"'reward'; the source Preferences does not provide it"),
        (lambda: SFT.but(objective=DPO(), average=GroupMean()), r"'preference'; the source Demonstrations does not"),
        (lambda: SFT.but(credit=(EvidenceCredit(),)), r"EvidenceCredit \(credit\) needs column 'advantage'"),
        (lambda: SFT.but(shaping=(KLInReward(),)), r"KLInReward \(shaping\) needs column 'reward'"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(made: Callable[[], Method], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        made()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objectiv": Clipped()}, "unknown method field 'objectiv'; did you mean 'objective'"),
        ({"objective.hihg": 0.3}, "unknown setting of Clipped 'hihg'; did you mean 'high'"),
        ({"regularisers.ReferenceKl.beta": 0.1}, "did you mean 'ReferenceKL'"),
        ({"regularisers.1.beta": 0.1}, "unknown part in 'regularisers.1.beta' '1'"),
        ({"advantage.eps.x": 1}, r"'advantage.eps.x': 0.0001 has no settings"),
        ({"credit.0.clip": 0.1}, "unknown part in 'credit.0.clip' '0'"),
    ],
)
def test_but_suggests_the_nearest_name(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GRPO.but(**change)


def test_but_changes_one_setting_of_a_part_by_position_or_name() -> None:
    by_position = GRPO.but(**{"regularisers.0.beta": 0.1, "objective.high": 0.28, "defaults.learning_rate": 3e-6})
    by_name = GRPO.but(**{"regularisers.ReferenceKL.beta": 0.1}).but(
        **{"objective.high": 0.28}, defaults={"learning_rate": 3e-6}
    )
    assert by_position == by_name
    assert [(c.path, c.before, c.after) for c in diff(GRPO, by_name)] == [
        ("objective.high", 0.2, 0.28),
        ("regularisers.beta", 0.04, 0.1),
    ]
    assert by_name.name == "grpo"
    assert by_name.parent is None


def test_a_part_that_refuses_its_settings_refuses_them_in_but() -> None:
    with pytest.raises(ConfigError, match="unknown KL estimator 'k4'"):
        GRPO.but(**{"regularisers.0.estimator": "k4"})


def test_diff_lists_added_and_removed_parts() -> None:
    changed = GRPO.but(regularisers=(), shaping=(SoftOverlong(limit=9),))
    assert [(c.path, c.before, c.after) for c in diff(GRPO, changed)] == [
        ("shaping", None, SoftOverlong(limit=9)),
        ("regularisers", ReferenceKL(), None),
    ]


def test_several_terms_have_their_own_averages_and_coefficients() -> None:
    extra = (Term(LogLikelihood(), SequenceMean(), coefficient=0.5), Term(LogLikelihood(), TokenMean(), 0.0))
    method = GRPO.but(regularisers=(), extra=extra)
    assert [type(t.average) for t in method.terms] == [SequenceMean, SequenceMean]
    batch, policy = random_rollout(0, 8), Bigram(0)
    totals = []
    for m in (method, GRPO.but(regularisers=()), SFT.but(source=GRPO.source, average=SequenceMean())):
        judged = weigh(m, provide_for_loss(m, judge(m, batch, policy), policy, skip=("logp",)))
        totals.append(loss(m, policy.live(judged)))
    assert totals[0].total.item() == pytest.approx(totals[1].total.item() + 0.5 * totals[2].total.item())
    assert set(totals[0].terms) == {"Clipped", "LogLikelihood"}
    assert sum(totals[0].terms.values()) == pytest.approx(totals[0].total.item())
    assert "+ 0.5 * l_t" in method.explain()
    assert method.explain().count("extra loss") == 1


def test_a_term_of_coefficient_zero_asks_for_nothing() -> None:
    assert not GRPO.but(regularisers=(), extra=(Term(ReferenceKL(), TokenMean(), 0.0),)).needs_reference()
    assert GRPO.but(regularisers=(), extra=(Term(ReferenceKL(), TokenMean(), 0.1),)).needs_reference()


def test_a_regulariser_beside_pairs_is_averaged_over_tokens_and_says_so() -> None:
    method = DPO_METHOD.but(regularisers=(EntropyBonus(strength=0.01),))
    assert [type(t.average) for t in method.terms] == [GroupMean, TokenMean]
    assert "H(pi(.|x, y_<t));  L = sum_{i,t} m_it l_it / sum_{i,t} m_it" in method.explain()


def test_lengths_left_open_are_filled_in_everywhere() -> None:
    method = get_method("dr-grpo").but(
        shaping=(SoftOverlong(),), extra=(Term(LogLikelihood(), ConstantNormaliser(), 0.1),)
    )
    bound = method.bound_to(512)
    assert [t.average for t in bound.terms] == [ConstantNormaliser(512)] * 2
    assert bound.shaping == (SoftOverlong(limit=512),)
    kept = get_method("dr-grpo").but(**{"average.length": 7}).bound_to(512)
    assert kept.average == ConstantNormaliser(7)


# -- signals of one's own -------------------------------------------------------------------------------
@dataclass(frozen=True)
class Surprise(Signal):
    """Minus the reference's log-prob, a column nobody has heard of."""

    adds: ClassVar[tuple[str, ...]] = ("surprise",)

    @property
    def needs(self) -> tuple[str, ...]:
        return ("reference_logp",)

    def __call__(self, batch: Batch, scorer: Scorer) -> dict[str, Tensor]:
        return {"surprise": -batch.reference_logp}

    def formula(self) -> str:
        return "s_t = -log pi_ref(y_t)"


@dataclass(frozen=True)
class BySurprise(Credit):
    @property
    def needs(self) -> tuple[str, ...]:
        return ("advantage", "surprise")

    @property
    def signals(self) -> tuple[Signal, ...]:
        return (Surprise(),)

    def __call__(self, batch: Batch) -> Tensor:
        return batch.advantage * batch.surprise  # also off the mask, where it may be infinite

    def formula(self) -> str:
        return "A_it *= s_t"


def test_a_part_may_bring_a_signal_with_a_column_of_its_own() -> None:
    method = GRPO.but(name="surprised", credit=(BySurprise(),), regularisers=())
    assert [type(s).__name__ for s in method.signals] == ["OldLogp", "ReferenceLogp", "Surprise"]
    batch, policy = random_rollout(0, 8), Bigram(0)
    judged = judge(method, batch, policy)
    plain = judge(GRPO, batch, policy)
    expected = plain.advantage * -policy.logp(batch, "reference")
    torch.testing.assert_close(judged.advantage, expected)
    assert [w for w, _ in policy.calls].count("reference") == 2  # once by judge, once by this test


def test_what_a_credit_says_off_the_mask_is_not_kept() -> None:
    method, batch = GRPO.but(name="surprised", credit=(BySurprise(),), regularisers=()), random_rollout(0, 8)
    spoiled = judge(method, batch, Spoiling(0))
    assert bool(torch.isnan(spoiled.surprise).any())
    assert torch.equal(spoiled.advantage, judge(method, batch, Bigram(0)).advantage)


def test_without_a_model_the_missing_column_is_named() -> None:
    with pytest.raises(ConfigError, match="KLInReward needs 'old_logp', but no model was given"):
        judge(get_method("rloo"), random_rollout(0, 4), None)


def test_a_paper_may_have_no_identifier() -> None:
    assert Paper("Williams 1992").arxiv == ""


def test_an_extra_regulariser_keeps_its_own_coefficient() -> None:
    method = GRPO.but(regularisers=(), extra=(Term(ReferenceKL(beta=0.5), TokenMean(), 0.1),))
    assert method.terms[1].strength == pytest.approx(0.05)
    assert "+ 0.1 * [+ 0.5 * " in method.explain()
    batch, policy = random_rollout(0, 8), Bigram(0)
    other = Bigram(1)
    found = []
    for m in (method, GRPO.but(regularisers=(), extra=(Term(ReferenceKL(beta=1.0), TokenMean(), 0.05),))):
        judged = judge(m, batch.with_columns(None, reference_logp=other.logp(batch)), policy)
        found.append(loss(m, policy.live(weigh(m, provide_for_loss(m, judged, policy, skip=("logp",))))).terms)
    assert found[0]["ReferenceKL"] == pytest.approx(found[1]["ReferenceKL"], abs=1e-15)
    assert found[0]["ReferenceKL"] != 0
    off = method.but(**{"extra.0.objective.beta": 0.0})
    assert len(off.terms) == 1
    assert not off.needs_reference()
    assert "extra loss" not in off.explain()
