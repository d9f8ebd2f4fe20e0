"""How the methods of the catalogue relate: each becomes a simpler one in some limit."""

from __future__ import annotations

import pytest
import torch
from bigram import Bigram, random_rollout
from torch import Tensor

from unipo.batch import Batch
from unipo.judge import judge, loss, provide_for_loss, weigh
from unipo.method import Method, diff
from unipo.parts.average import SequenceMean, SequenceSum, TokenMean
from unipo.parts.credit import EvidenceCredit
from unipo.parts.objective import Clipped, ScoreFunction, SequenceClippedToken
from unipo.parts.regulariser import ReferenceKL
from unipo.registry import get_method

SEEDS = range(3)


def gradient(method: Method, batch: Batch, seed: int, drift: float = 0.0, scorer: Bigram | None = None) -> Tensor:
    """The update of the bigram policy by this method, `drift` away from the policy that made the old log-probs."""
    policy = scorer or Bigram(seed)
    method = method.bound_to(8)
    judged = judge(method, batch, policy)
    judged = weigh(method, provide_for_loss(method, judged, policy, skip=("logp", "entropy")))
    away = torch.randn(policy.theta.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    policy.theta = (policy.theta.detach() + drift * away).requires_grad_()
    return torch.autograd.grad(loss(method, policy.live(judged)).total, policy.theta)[0]


def same(a: Tensor, b: Tensor, digits: float = 1e-10) -> None:
    assert float(a.abs().max()) > 1e-5
    torch.testing.assert_close(a, b, rtol=digits, atol=digits)


def at_length_one(seed: int, group: int) -> Batch:
    whole = random_rollout(seed, group)
    keep = whole.layout.token_position == 0
    columns = {k: v for k, v in whole.columns.items() if whole.levels[k] != "token"}
    short = Batch.of(
        type(whole.layout)(
            whole.layout.seq_lengths.clamp(max=1), whole.layout.group_sizes, whole.layout.context_lengths
        ),
        **columns,
    )
    return short.with_columns(None, **{k: v[keep] for k, v in whole.columns.items() if whole.levels[k] == "token"})


@pytest.mark.parametrize("seed", SEEDS)
def test_gspo_is_grpo_at_length_one(seed: int) -> None:
    batch = at_length_one(seed, 8)
    grpo = get_method("grpo").but(regularisers=())
    gspo = get_method("gspo").but(**{"objective.low": 0.2, "objective.high": 0.2})
    same(gradient(gspo, batch, seed, drift=0.3), gradient(grpo, batch, seed, drift=0.3))


@pytest.mark.parametrize("seed", SEEDS)
def test_gspo_token_is_gspo_for_group_advantages(seed: int) -> None:
    gspo = get_method("gspo").but(**{"objective.low": 0.05, "objective.high": 0.05})
    token = gspo.but(objective=SequenceClippedToken(low=0.05, high=0.05))
    batch = random_rollout(seed, 8)
    same(gradient(token, batch, seed, drift=0.05), gradient(gspo, batch, seed, drift=0.05))


@pytest.mark.parametrize("seed", SEEDS)
def test_on_policy_cispo_is_grpo_with_the_token_mean(seed: int) -> None:
    batch = random_rollout(seed, 8)
    same(gradient(get_method("cispo"), batch, seed), gradient(get_method("grpo-token"), batch, seed))


def test_dapo_with_its_four_changes_undone_is_grpo() -> None:
    undone = get_method("dapo").but(
        selection=(), shaping=(), average=SequenceMean(), **{"objective.high": 0.2, "advantage.eps": 1e-4}
    )
    grpo = get_method("grpo").but(regularisers=(), **{"source.group_size": 16})
    assert diff(grpo, undone) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_reinforce_with_leave_one_out_is_rloo_on_policy(seed: int) -> None:
    """The paper's form (sum of log-probs) and TRL's (clipped product ratio) have one gradient on the first update."""
    trl = get_method("rloo")
    paper = trl.but(objective=ScoreFunction(), average=SequenceSum())
    batch = random_rollout(seed, 4)
    same(gradient(paper, batch, seed), gradient(trl, batch, seed))


@pytest.mark.parametrize("seed", SEEDS)
def test_rloo_is_dr_grpo_times_g_over_g_minus_one(seed: int) -> None:
    """Same sum over tokens, constant 1 and no KL; every response of these groups is scored."""
    batch = random_rollout(seed, 4)
    batch = batch.take_prompts(batch.layout.group_sum((~batch.scored).long()) == 0)
    rloo = get_method("rloo").but(shaping=())
    dr = get_method("dr-grpo").but(**{"source.group_size": 4, "average.length": 1})
    same(gradient(rloo, batch, seed), gradient(dr, batch, seed) * 4 / 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_evidence_methods_without_strength_are_their_parent(seed: int) -> None:
    batch = random_rollout(seed, 8)
    plain = gradient(get_method("cepo").but(credit=()), batch, seed, drift=0.2)
    for settings in ({"strength": 0.0}, {"clip": 0.0}):
        for name in ("rlsd", "cepo"):
            method = get_method(name).but(**{f"credit.0.{k}": v for k, v in settings.items()})
            same(gradient(method, batch, seed, drift=0.2), plain)


class Unmoved(Bigram):
    """Shown anything but the right answer, it sees nothing: its counter score is the plain policy's."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text) if text == " 7" else []


@pytest.mark.parametrize("seed", SEEDS)
def test_cepo_is_rlsd_when_the_wrong_answer_says_nothing(seed: int) -> None:
    batch = random_rollout(seed, 8)
    whole = [
        str(i) for i in range(batch.layout.n_sequences)
    ]  # every response has an answer, so every group a wrong one
    batch = batch.with_columns(None, extracted=[f"x{i}" for i in whole], score=torch.zeros_like(batch.score))
    flat = {"decay_steps": 0}
    cepo = get_method("cepo").but(**{f"credit.0.{k}": v for k, v in flat.items()})
    rlsd = get_method("rlsd").but(**{f"credit.0.{k}": v for k, v in flat.items()})
    a, b = (gradient(m, batch, seed, drift=0.1, scorer=Unmoved(seed)) for m in (cepo, rlsd))
    same(a, b)
    plain = gradient(cepo.but(credit=()), batch, seed, drift=0.1)
    assert float((a - plain).abs().max()) > 1e-6


def test_cepo_changes_only_the_evidence_of_rlsd() -> None:
    changes = {c.path: (c.before, c.after) for c in diff(get_method("rlsd"), get_method("cepo"))}
    assert changes == {
        "credit.contrastive": (False, True),
        "credit.decay_steps": (50, 25),
        "credit.offset": (0, 1),
    }


def test_what_grpo_token_changes_in_grpo() -> None:
    changes = {c.path: (c.before, c.after) for c in diff(get_method("grpo"), get_method("grpo-token"))}
    assert changes == {"average": (SequenceMean(), TokenMean()), "regularisers.beta": (0.04, 0.0)}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_regulariser_of_zero_is_no_regulariser(seed: int) -> None:
    grpo, batch = get_method("grpo"), random_rollout(seed, 8)
    off = grpo.but(regularisers=(ReferenceKL(beta=0.0),))
    same(gradient(off, batch, seed, drift=0.1), gradient(grpo.but(regularisers=()), batch, seed, drift=0.1))
    assert not off.needs_reference()
    assert grpo.needs_reference()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_dynamic_likelihood_is_sft_with_each_token_weighted_by_its_probability(seed: int) -> None:
    batch = random_rollout(seed, 1)
    sft = get_method("sft")
    dft, policy = sft.but(**{"objective.dynamic": True}), Bigram(seed)
    probability = policy.logp(batch).exp()
    weighted = weigh(sft, judge(sft, batch))
    weighted = policy.live(weighted.with_columns(None, **{"weight.0": getattr(weighted, "weight.0") * probability}))
    expected = torch.autograd.grad(loss(sft, weighted).total, policy.theta)[0]
    same(gradient(dft, batch, seed), expected)


def test_credit_may_come_in_several_steps() -> None:
    """Two credits in a row multiply; each sees the advantage the one before has made."""
    one = EvidenceCredit(decay_steps=0, strength=1.0, clip=0.1)
    batch, method = random_rollout(0, 8), get_method("cepo").but(objective=Clipped())
    twice, once = (judge(method.but(credit=c), batch, Bigram(0)) for c in ((one, one), (one,)))
    plain = judge(method.but(credit=()), batch, Bigram(0)).advantage
    alive = plain != 0
    ratio = (once.advantage / plain)[alive]
    torch.testing.assert_close((twice.advantage / plain)[alive], ratio**2)
    assert float((ratio - 1).abs().max()) > 0.01
