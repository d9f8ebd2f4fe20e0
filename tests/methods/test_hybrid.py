"""HPT: every post-training gradient is one estimator, and the gate chooses between two of them prompt by prompt."""

from __future__ import annotations

import pytest
import torch
from bigram import Bigram, random_rollout, with_demonstrations
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.judge import judge, loss, provide_for_loss, required_tokens, weigh
from unipo.layout import Layout
from unipo.method import Method, Term
from unipo.parts.average import SequenceMean, TokenMean
from unipo.parts.demonstration import OnRows
from unipo.parts.objective import Clipped, ClippedWeight, ScoreFunction, SequenceClipped, SequenceClippedToken
from unipo.parts.part import Objective
from unipo.parts.preference import LogLikelihood
from unipo.parts.surrogate import CappedSurrogate
from unipo.registry import get_method

HPT = get_method("hpt").bound_to(6)
EXACT = {"rtol": 1e-10, "atol": 1e-10}


# -- the unified estimator: loss gradient = - 1_stable * A * grad pi / pi_ref ------------------------------------
def bandit(old: list[float], advantage: list[float]) -> tuple[Tensor, Batch]:
    """Three actions, one response of one token each: (logits with gradient, batch with their live log-probs)."""
    theta = torch.tensor([0.3, -0.2, 0.9], dtype=torch.float64, requires_grad=True)
    values = torch.tensor(advantage, dtype=torch.float64)
    batch = Batch.of(
        Layout.of([1, 1, 1]),
        logp=theta.log_softmax(0),
        old_logp=torch.tensor(old, dtype=torch.float64).log(),
        advantage=values,
        sequence_advantage=values,
        mask=torch.ones(3, dtype=torch.bool),
    )
    return theta, batch


# pi = (.2917, .1769, .5314); the ratios to these are 1.17, 3.54 and 0.76
OLD, ADVANTAGE = [0.25, 0.05, 0.7], [1.0, -2.0, -0.5]


@pytest.mark.parametrize(
    ("objective", "stable", "reference", "advantage"),
    [
        (LogLikelihood(), [1, 1, 1], "pi", [1.0, 1.0, 1.0]),
        (LogLikelihood(dynamic=True), [1, 1, 1], "one", [1.0, 1.0, 1.0]),
        (ScoreFunction(), [1, 1, 1], "pi", ADVANTAGE),
        (CappedSurrogate(), [1, 1, 1], "old", ADVANTAGE),
        (Clipped(low=0.2, high=0.2), [1, 1, 0], "old", ADVANTAGE),
        (Clipped(low=0.2, high=0.28, dual=3.0), [1, 0, 0], "old", ADVANTAGE),
        (SequenceClipped(low=0.2, high=0.2), [1, 1, 0], "old", ADVANTAGE),
        (SequenceClippedToken(low=0.2, high=0.2), [1, 1, 0], "old", ADVANTAGE),
        (ClippedWeight(cap=5.0), [1, 1, 1], "old", ADVANTAGE),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Objective) else "",
)
def test_a_row_of_the_unified_table_is_the_gradient(
    objective: Objective, stable: list[int], reference: str, advantage: list[float]
) -> None:
    theta, batch = bandit(OLD, ADVANTAGE)
    (gradient,) = torch.autograd.grad(objective(batch).sum(), theta)
    probability = theta.softmax(0)
    below = {"pi": probability.detach(), "old": batch.old_logp.exp(), "one": torch.ones(3, dtype=torch.float64)}
    weight = torch.tensor(stable) * torch.tensor(advantage, dtype=torch.float64) / below[reference]
    (expected,) = torch.autograd.grad(-(weight * probability).sum(), theta)
    torch.testing.assert_close(gradient, expected, **EXACT)


def test_on_policy_the_clipped_row_is_reinforce_and_one_token_sequences_are_tokens() -> None:
    theta, batch = bandit(OLD, ADVANTAGE)
    now = batch.with_columns(None, old_logp=batch.logp.detach())

    def of(part: Objective, on: Batch) -> Tensor:
        return torch.autograd.grad(part(on).sum(), theta, retain_graph=True)[0]

    torch.testing.assert_close(of(Clipped(), now), of(ScoreFunction(), now), **EXACT)
    torch.testing.assert_close(of(SequenceClipped(0.2, 0.2), batch), of(Clipped(0.2, 0.2), batch), **EXACT)


# -- the gate -----------------------------------------------------------------------------------------------
def prepared(method: Method, seed: int = 0) -> tuple[Bigram, Batch]:
    policy = Bigram(seed)
    batch = judge(method, with_demonstrations(random_rollout(seed, method.source.group + 1)), policy)
    return policy, weigh(method, provide_for_loss(method, batch, policy, skip=("logp", "entropy", "old_logp")))


def gradient(method: Method, policy: Bigram, batch: Batch) -> Tensor:
    return torch.autograd.grad(loss(method, policy.live(batch)).total, policy.theta)[0]


def failed(batch: Batch) -> Tensor:
    """[P] bool: nothing right among the sampled."""
    return batch.layout.group_sum((batch.scored & (batch.score >= 1)).long()) == 0


def test_a_failed_group_moves_only_its_demonstration_and_the_others_only_their_responses() -> None:
    policy, batch = prepared(HPT)
    live = policy.live(batch)
    (moved,) = torch.autograd.grad(loss(HPT, live).total, live.logp)
    layout = batch.layout
    below = layout.to_tokens(layout.to_sequences(failed(batch)))
    shown = layout.to_tokens(batch.demonstration)
    assert bool(failed(batch).any())
    assert not bool(failed(batch).all())
    assert not bool((moved[shown != below] != 0).any())
    likely = moved[shown & below & batch.mask]
    torch.testing.assert_close(likely, torch.full_like(likely, -1 / len(likely)), **EXACT)
    assert bool((moved[~shown & ~below] != 0).any())


def test_each_term_has_its_own_denominator() -> None:
    """Dropping the demonstrations leaves the policy gradient as it was, and the other way round."""
    policy, batch = prepared(HPT)
    likelihood = HPT.but(extra=(HPT.extra[0],))
    both = gradient(likelihood, policy, weigh(likelihood, batch))
    alone = []
    for kept, method in ((~batch.demonstration, HPT.but(extra=())), (batch.demonstration, likelihood)):
        part = batch.take_sequences(kept)
        alone.append(gradient(method, policy, weigh(method, part)))
    torch.testing.assert_close(both, alone[0] + alone[1], **EXACT)


def test_a_gate_that_is_always_shut_is_supervised_fine_tuning() -> None:
    shut = HPT.but(**{"selection.0.most": 8}, extra=(HPT.extra[0],))
    policy, batch = prepared(shut)
    sft = get_method("sft")
    shown = batch.take_sequences(batch.demonstration)
    plain = weigh(
        sft, judge(sft, shown.with_columns(None, scored=torch.ones(shown.layout.n_sequences, dtype=torch.bool)))
    )
    torch.testing.assert_close(gradient(shut, policy, batch), gradient(sft, policy, plain), **EXACT)


def test_a_gate_that_is_always_open_is_the_policy_gradient() -> None:
    opened = HPT.but(**{"selection.0.most": -1}, extra=())
    policy, batch = prepared(opened)
    plain = get_method("dr-grpo").but(objective=CappedSurrogate(), average=opened.average.unwrapped)
    sampled = with_demonstrations(random_rollout(0, 9)).take_sequences(~batch.demonstration)
    alone = weigh(plain, judge(plain, sampled, policy))
    torch.testing.assert_close(gradient(opened, policy, batch), gradient(plain, policy, alone), **EXACT)


def test_demonstrations_leave_every_statistic_of_the_sampled() -> None:
    """Also those counted over tokens: a whitened return gives a demonstration 0, not minus the mean."""
    whitened = get_method("reinforce++").but(source=HPT.source, average=OnRows(TokenMean(), "sampled"))
    batch = with_demonstrations(random_rollout(1, 9))
    policy = Bigram(1)
    judged = judge(whitened, batch, policy)
    shown = batch.layout.to_tokens(batch.demonstration)
    assert not bool((judged.advantage[shown] != 0).any())
    assert bool(judged.mask[shown].any())
    alone = judge(whitened, batch.take_sequences(~batch.demonstration), policy)
    torch.testing.assert_close(judged.advantage[~shown], alone.advantage, **EXACT)


def test_nothing_but_what_is_learnt_from_is_computed() -> None:
    """Without the entropy term, the responses of equal reward and the unused demonstrations are not forwarded."""
    method = HPT.but(extra=(HPT.extra[0],))
    _, batch = prepared(method)
    required = required_tokens(method, batch)
    shown = batch.layout.to_tokens(batch.demonstration)
    assert torch.equal(required, batch.mask & (shown | (batch.advantage != 0)))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"OnRows .average. needs column 'demonstration'; the source OnPolicy"):
        get_method("grpo").but(average=OnRows(TokenMean()))
    with pytest.raises(ConfigError, match="would weigh it by its length"):
        HPT.but(extra=(Term(SequenceClipped(), OnRows(TokenMean())),))
    assert HPT.but(extra=(Term(SequenceClipped(), OnRows(SequenceMean())),)).terms
