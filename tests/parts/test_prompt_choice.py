"""Which prompts come next, and which of the sampled ones are trained on."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from by_hand import batch_of, close, live

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.curriculum import Curriculum, DomainWeights, RewriteByDifficulty, domain_counts, domain_weights
from unipo.parts.difficulty import DifficultyKL, HardPrompts, difficulty
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.selection import DynamicSampling, MixedOutcomes, PassRateBand, VarianceAbove

DRAW = torch.Generator().manual_seed(0)


def groups(*right: int, size: int = 16, **columns: Any) -> Batch:
    """Prompts of which so many of `size` responses are right."""
    score = [float(i < r) for r in right for i in range(size)]
    return batch_of([1] * len(score), [size] * len(right), score=score, **columns)


# -- pass rates --------------------------------------------------------------------------------------
ALL_RATES = groups(*range(17))


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.02, 1.1624e-5), (0.1, 0.0170), (0.3, 0.5498), (0.5, 0.9232), (0.7, 0.5498), (0.9, 0.0170)],
)
def test_how_often_a_prompt_of_some_difficulty_is_kept(p: float, expected: float) -> None:
    kept = PassRateBand()(ALL_RATES).tolist()
    chance = sum(math.comb(16, k) * p**k * (1 - p) ** (16 - k) for k in range(17) if kept[k])
    assert chance == pytest.approx(expected, rel=2e-3)


def test_the_band_is_open_at_both_ends() -> None:
    # of eight, 0.3 < k/8 < 0.7 leaves 3, 4, 5; of ten, 3/10 and 7/10 are outside
    assert [k for k in range(9) if PassRateBand()(groups(k, size=8))[0]] == [3, 4, 5]
    assert [k for k in range(11) if PassRateBand()(groups(k, size=10))[0]] == [4, 5, 6]


def test_the_widest_bands_are_dynamic_sampling_and_no_filter() -> None:
    assert torch.equal(PassRateBand(low=0, high=1)(ALL_RATES), DynamicSampling()(ALL_RATES))
    assert torch.equal(MixedOutcomes()(ALL_RATES), DynamicSampling()(ALL_RATES))
    assert bool(PassRateBand(low=-1, high=2)(ALL_RATES).all())


def test_prompts_outside_the_band_are_the_nearest_to_the_optimum_already() -> None:
    """KL(pi || pi exp(R/b)/Z) = log(1 - p + p e^(1/b)) - p/b, about p(1 - p)/(2 b^2): largest inside the band."""

    def distance(p: float, b: float) -> float:
        z = 1 - p + p * math.exp(1 / b)
        tilted = p * math.exp(1 / b) / z
        return sum(q * math.log(q / t) for q, t in ((p, tilted), (1 - p, 1 - tilted)) if q)

    assert [distance(p, 1) for p in (0.5, 0.3, 0.7)] == pytest.approx([0.1201, 0.1157, 0.0897], abs=1e-4)
    assert distance(0.3, 50) == pytest.approx(0.3 * 0.7 / (2 * 50**2), rel=0.01)
    kept = PassRateBand()(ALL_RATES).tolist()
    inside = min(distance(k / 16, 20) for k in range(17) if kept[k])
    assert inside > max(distance(k / 16, 20) for k in range(17) if not kept[k])


def test_scores_of_any_kind_are_kept_by_their_variance() -> None:
    # variances 0.25, 0.01, 0; the unscored 9 does not count
    batch = batch_of(
        [1] * 7, [2, 2, 3], score=[0.0, 1.0, 0.4, 0.6, 0.5, 0.5, 9.0], scored=[True] * 6 + [False],
    )  # fmt: skip
    assert VarianceAbove(least=0.2)(batch).tolist() == [True, False, False]
    assert VarianceAbove(least=0.0)(batch).tolist() == [True, True, False]
    assert torch.equal(VarianceAbove()(ALL_RATES), PassRateBand()(ALL_RATES))
    tenths = groups(*range(11), size=10)  # 3 and 7 of 10 stand on the edge
    assert torch.equal(VarianceAbove()(tenths), PassRateBand()(tenths))
    assert VarianceAbove().tier(batch).tolist() == [0, 0, 1]


def test_a_band_that_is_empty_is_refused() -> None:
    with pytest.raises(ConfigError, match="PassRateBand needs low < high"):
        PassRateBand(low=0.7, high=0.3)
    with pytest.raises(ConfigError, match=r"PassRateBand: when_dry is train\|fill\|raise"):
        PassRateBand(when_dry="wait")


# -- domains -----------------------------------------------------------------------------------------
def test_the_further_below_the_target_the_larger_the_weight() -> None:
    # v = 0.1, 0.5, 0.9; exp(v/0.3) = 1.3956, 5.2945, 20.0855, sum 26.7756
    weights = domain_weights({"a": 0.9, "b": 0.5, "c": 0.1}, target=1.0, tau=0.3)
    assert list(weights.values()) == pytest.approx([0.0521, 0.1977, 0.7501], abs=1e-4)
    assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-15)


def test_the_same_added_to_every_distance_changes_nothing() -> None:
    """The code's eps inside the exponent."""
    plain = domain_weights({"a": 0.9, "b": 0.5, "c": 0.1}, 1.0, 0.3)
    moved = domain_weights({"a": 0.9, "b": 0.5, "c": 0.1}, 1.1, 0.3)
    assert list(moved.values()) == pytest.approx(list(plain.values()), abs=1e-14)


def test_the_limits_of_the_temperature_and_of_the_target() -> None:
    reward = {"a": 0.9, "b": 0.5, "c": 0.1}
    assert list(domain_weights(reward, 1.0, 1e9).values()) == pytest.approx([1 / 3] * 3, abs=1e-8)
    four = domain_weights({"a": 0.4, "b": 0.5, "c": 0.6, "d": 0.69}, 1.0, 1e9)
    assert domain_counts(list(four.values()), 8) == [2, 2, 2, 2]  # a hair below 1/4 each is not a slot less
    assert list(domain_weights(reward, 1.0, 1e-3).values()) == pytest.approx([0, 0, 1], abs=1e-12)
    assert list(domain_weights(reward, 0.05, 0.3).values()) == [1 / 3] * 3


@pytest.mark.parametrize(
    ("weights", "n", "counts"),
    [
        ((0.5, 0.3, 0.2), 8, [5, 2, 1]),  # floors 4, 2, 1, the spare to the first
        ((0.2, 0.3, 0.5), 8, [1, 2, 5]),
        ((0.25, 0.25, 0.25, 0.25), 6, [2, 2, 1, 1]),
        ((0.9, 0.1), 1, [1, 0]),
        ((1.0,), 5, [5]),
    ],
)
def test_whole_prompts_add_up_to_the_batch(weights: tuple[float, ...], n: int, counts: list[int]) -> None:
    assert domain_counts(weights, n) == counts


def test_any_weights_give_whole_batches() -> None:
    draw = torch.Generator().manual_seed(3)
    for n in range(40):
        weights = torch.rand(7, generator=draw, dtype=torch.float64).softmax(0).tolist()
        counts = domain_counts(weights, n)
        assert sum(counts) == n
        assert all(math.floor(n * w) <= c <= math.floor(n * w) + 1 for w, c in zip(weights, counts, strict=True))


def domains(step: int, states: dict[str, Any] | None = None, **right: int) -> Batch:
    """A batch of one prompt per domain, with so many right responses of four; one unscored response at the end."""
    batch = groups(
        *right.values(), size=4, row=[{"domain": d} for d in right], prompt_id=torch.arange(len(right)),
        scored=[True] * (4 * len(right) - 1) + [False],
    )  # fmt: skip
    return replace(batch, step=step, states=states or {})


def test_rewards_are_renewed_every_few_steps_and_smoothed() -> None:
    part = DomainWeights(every=2, smooth=0.5)
    assert part.remember(domains(1, a=4, b=0)) == {}
    first = part.remember(domains(2, a=4, b=0))
    assert first == {"reward": {"a": 1.0, "b": 0.0}}
    assert part.remember(domains(3, {part.state_key: first}, a=0, b=4)) == first
    second = part.remember(domains(4, {part.state_key: first}, a=2, b=3))
    # a: (1 + 0.5)/2; b's last response is unscored, 3 of 3 are right: (0 + 1)/2
    assert second == {"reward": {"a": 0.75, "b": 0.5}}
    assert DomainWeights(every=2, smooth=0).remember(domains(4, {part.state_key: first}, a=2, b=3)) == {
        "reward": {"a": 0.5, "b": 1.0}
    }


def test_a_domain_that_was_not_sampled_keeps_its_place() -> None:
    part = DomainWeights(every=1)
    memory = part.remember(domains(2, {part.state_key: {"reward": {"a": 0.9, "b": 0.2}}}, a=2, c=0))
    assert memory["reward"]["b"] == 0.2
    sizes = {"a": 5, "b": 5, "c": 5, "never": 5}
    counts = part.counts(memory, sizes, 100, DRAW)
    # c and the domain that was never seen are furthest from the target, b next, a last
    assert counts[2] >= counts[3] > counts[1] > counts[0] > 0
    assert part.counts({"reward": {"a": 1.0, "b": 1.0}}, {"a": 1, "b": 1}, 4, DRAW) == [2, 2]


def test_the_mixture_starts_as_it_is_told() -> None:
    sizes = {"a": 1, "b": 4, "c": 16}
    assert DomainWeights().counts({}, sizes, 9, DRAW) == [3, 3, 3]
    # 1, 1/2, 1/4 of 7/4
    assert DomainWeights(initial="inverse_sqrt").counts({}, sizes, 7, DRAW) == [4, 2, 1]
    # e^1, e^0.5, e^0.25 = 2.718, 1.649, 1.284 of 5.651
    assert DomainWeights(initial="softmax_inverse_sqrt").counts({}, sizes, 1000, DRAW) == [482, 291, 227]


def test_rows_without_a_domain_and_impossible_settings_are_named() -> None:
    with pytest.raises(DataError, match=r"data row 7 has no 'topic' to.*it has: kind\).*curriculum\.field"):
        DomainWeights(field="topic").pool({"kind": "add"}, 7)
    with pytest.raises(DataError, match="no 'domain' or 'data_source' or 'kind'"):
        DomainWeights().pool({"question": "x"}, 7)
    assert DomainWeights().pool({"kind": "add", "data_source": "gsm8k"}, 7) == "gsm8k"
    assert DomainWeights(field="kind").pool({"kind": "add", "data_source": "gsm8k"}, 7) == "add"
    with pytest.raises(ConfigError, match="every >= 1"):
        DomainWeights(every=0)
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        DomainWeights(initial="unifrom")


def test_without_pools_the_data_stays_as_it_is() -> None:
    assert Curriculum().pool({"domain": "a"}, 3) == ""
    assert Curriculum().counts({}, {"": 9}, 4, DRAW) == [4]
    assert Curriculum().rewrites(groups(1), ["x"]) is None


# -- difficulty --------------------------------------------------------------------------------------
def test_difficulty_is_the_share_of_right_answers() -> None:
    assert difficulty(groups(0, 1, 2, 3, 4, size=4)) == ["hard", "hard", "medium", "easy", "easy"]
    assert difficulty(groups(3, 4, 7, 8, size=10)) == ["hard", "medium", "medium", "easy"]


def asked(part: RewriteByDifficulty, *right: int) -> list[tuple[int, str]]:
    batch = groups(*right, size=4, answer=["42"] * len(right))
    found = part.rewrites(batch, [f"problem {p}" for p in range(len(right))])
    assert found is not None
    return [(r.prompt, r.label) for r in found.requests]


def test_hard_and_medium_prompts_are_rewritten_and_easy_ones_are_not() -> None:
    assert asked(RewriteByDifficulty(), 0, 4, 2, 1, 3) == [(0, "hard"), (2, "medium"), (3, "hard")]
    assert asked(RewriteByDifficulty(modes="hard"), 0, 4, 2, 1, 3) == [(0, "hard"), (3, "hard")]
    assert asked(RewriteByDifficulty(modes="medium"), 0, 4, 2, 1, 3) == [(2, "medium")]


def test_a_prompt_without_a_scored_response_is_not_judged() -> None:
    batch = groups(0, size=2, answer=["1"], scored=[False, False])
    found = RewriteByDifficulty().rewrites(batch, ["p"])
    assert found is not None
    assert found.requests == ()


def test_the_instruction_shows_problem_and_answer() -> None:
    part = RewriteByDifficulty()
    hard, medium = (part.instruction(label, "How many {x}?", "42") for label in ("hard", "medium"))
    assert hard != medium
    for text in (hard, medium):
        assert "How many {x}?" in text
        assert "(42)" in text
    assert "None" not in part.instruction("hard", "p", None)


@pytest.mark.parametrize(
    ("reply", "taken"),
    [
        ("```text\nWhat is two plus three?\n```", "What is two plus three?"),
        ("Here:\n```python\nnot this\n```\n```text\nWhat is 2 + 3, please?\n```", "What is 2 + 3, please?"),
        ("```\nWhat is two plus three?\n```", "What is two plus three?"),
        ("```text\nWhat is two plus three, cut off", "What is two plus three, cut off"),
        ("What is two plus three?", "What is two plus three?"),
        ("```text\nshort\n```", None),
        ("x" * 10, None),
        ("x" * 11, "x" * 11),
        ("x" * 2000, None),
        ("", None),
    ],
)
def test_the_first_block_of_a_reply_is_the_prompt(reply: str, taken: str | None) -> None:
    assert RewriteByDifficulty().accept(reply) == taken


def test_impossible_rewriting_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'hard'"):
        RewriteByDifficulty(modes="hart")
    with pytest.raises(ConfigError, match="0 <= hard_up_to <= easy_from"):
        RewriteByDifficulty(hard_up_to=0.8)


class NoModels:
    def logp(self, batch: Batch, weights: str = "policy") -> torch.Tensor:
        raise AssertionError

    def encode(self, text: str) -> list[int]:
        raise AssertionError


def marked(batch: Batch) -> Batch:
    return batch.with_columns("sequence", **HardPrompts()(batch, NoModels()))


def test_hard_are_prompts_mostly_failed_and_those_made_of_such() -> None:
    batch = groups(1, 2, 3, size=4, variant=["", "hard", "medium"])
    assert marked(batch).hard.tolist() == [True] * 4 + [True] * 4 + [False] * 4
    assert marked(batch.without("variant")).hard.tolist() == [True] * 4 + [False] * 8


def test_the_kl_of_a_hard_prompt_is_scaled_and_so_is_its_gradient() -> None:
    # d = 0.5 everywhere: k3 = exp(-0.5) - 0.5 = 0.10653, gradient 1 - exp(-0.5) = 0.39347
    old = groups(1, 2, size=4, reference_logp=[-1.5] * 8)
    batch = live(marked(old), torch.full((8,), -1.0, dtype=torch.float64))
    value = DifficultyKL(beta=0.001, hard=0.5)(batch)
    (gradient,) = torch.autograd.grad(value.sum(), batch.logp)
    k3, slope = math.exp(-0.5) - 0.5, 1 - math.exp(-0.5)
    close(value, [0.5 * k3] * 4 + [k3] * 4)
    close(gradient, [0.5 * slope] * 4 + [slope] * 4)
    plain = DifficultyKL(beta=0.001, hard=1.0)(batch)
    assert torch.equal(plain, ReferenceKL(beta=0.001)(batch))
    assert DifficultyKL(beta=0.001).coefficient == 0.001
    assert DifficultyKL(beta=0.0).needs == ()
