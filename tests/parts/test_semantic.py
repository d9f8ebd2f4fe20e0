"""Clusters of meaning, semantic entropy and rewards from agreement."""

from __future__ import annotations

import importlib.util
import itertools
import math
from typing import Any

import pytest
import torch
from by_hand import batch_of, close, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.parts.semantic import (
    Clusters,
    ClusterShare,
    MajorityVote,
    SemanticEntropyWeight,
    cluster_share,
    greedy_clusters,
    semantic_entropy,
    uncertainty_scale,
)


def answers(*groups: list[str | None], clusters: Clusters | None = None, **columns: Any) -> Batch:
    """One prompt per list of final answers, with their clusters."""
    flat = [a for g in groups for a in g]
    given: dict[str, Any] = {"reward": [math.nan] * len(flat), "extracted": flat, "text": [str(a) for a in flat]}
    batch = batch_of([1] * len(flat), [len(g) for g in groups], **(given | columns))
    return batch.with_columns("sequence", **(clusters or Clusters())(batch))


def sized(*sizes: int) -> list[str | None]:
    return [f"answer {k}" for k, size in enumerate(sizes) for _ in range(size)]


# -- clusters ------------------------------------------------------------------------------------------
def test_clusters_number_meanings_in_order_of_appearance() -> None:
    texts = ["a", None, "b", " a ", "", "b"]
    assert answers(texts, texts).cluster.tolist() == [0, 1, 2, 0, 1, 2] * 2
    apart = answers(texts, clusters=Clusters(missing="apart"))
    assert apart.cluster.tolist() == [0, 1, 2, 0, 3, 2]
    whole = answers(["x", "y"], text=["same", "same "], clusters=Clusters(of="text"))
    assert whole.cluster.tolist() == [0, 0]


def test_a_text_joins_the_first_cluster_whose_first_member_is_the_same() -> None:
    def near(pairs: Any) -> list[bool]:
        return [abs(int(a) - int(b)) <= 1 for a, b in pairs]

    # 3 is near 2, which is near 1, but it is compared with the first members only: 1 (no), 4 (yes)
    assert greedy_clusters(["1", "2", "4", "3"], near, "apart") == [0, 0, 1, 1]
    assert greedy_clusters(["2", "1", "4", "3"], near, "apart") == [0, 0, 1, 0]


def test_a_reward_may_say_what_is_the_same() -> None:
    batch = answers(["72", "72.0", "$72", "71", None], clusters=Clusters(by="numbers"))
    assert batch.cluster.tolist() == [0, 0, 0, 1, 2]


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")
def test_the_symbolic_verifier_may_say_what_is_the_same() -> None:
    batch = answers(["\\frac{1}{2}", "0.5", "2"], ["x+1", "1+x", "x"], clusters=Clusters(by="maths"))
    assert batch.cluster.tolist() == [0, 0, 1, 0, 0, 1]


def test_a_column_that_is_no_cluster_is_refused() -> None:
    layout, everyone = Layout.of([1, 1], [2]), torch.tensor([True, True])
    for bad in (torch.tensor([0, -1]), torch.tensor([0.0, 1.0])):
        with pytest.raises(DataError, match="whole numbers from 0"):
            cluster_share(bad, layout, everyone)


# -- entropy --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sizes", "entropy", "weight"),
    [
        ((8,), 0.0, 1.0),
        ((4, 4), math.log(2), 0.9861),
        ((6, 1, 1), 0.7356, 0.9852),
        ((1,) * 8, math.log(8), 0.9583),
    ],
)
def test_semantic_entropy_of_eight_by_hand(sizes: tuple[int, ...], entropy: float, weight: float) -> None:
    batch = answers(sized(*sizes))
    part = SemanticEntropyWeight(likelihood=False)
    assert float(part.entropy(batch)) == pytest.approx(entropy, abs=5e-5)
    assert float(part.weights(batch.with_columns(None, advantage=torch.ones(8)))) == pytest.approx(weight, abs=5e-5)


def test_unanimity_is_exactly_zero() -> None:
    batch = answers(["a"] * 7, behaviour_logp=[-0.1 * i for i in range(7)])
    assert SemanticEntropyWeight().weights(batch).tolist() == [1.0]


def test_likelihood_weights_by_hand() -> None:
    # l = 1/2, 1/4, 1/4 -> p(a) = 3/4, p(b) = 1/4
    batch = answers(["a", "a", "b"], behaviour_logp=[math.log(x) for x in (0.5, 0.25, 0.25)])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(SemanticEntropyWeight().entropy(batch)) == pytest.approx(expected)
    # the paper's estimator: the mean of -log p over the two clusters
    mean = -(math.log(0.75) + math.log(0.25)) / 2
    assert float(SemanticEntropyWeight(monte_carlo=True).entropy(batch)) == pytest.approx(mean)


def test_likelihoods_are_normalised_by_length_over_the_policys_own_tokens() -> None:
    batch = batch_of(
        [2, 3],
        [2],
        extracted=["a", "b"],
        behaviour_logp=[math.log(0.5)] * 2 + [math.log(0.25), math.inf, math.log(0.25)],
        trainable=[True, True, True, False, True],
    )
    batch = batch.with_columns("sequence", cluster=torch.tensor([0, 1]))
    expected = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert float(SemanticEntropyWeight().entropy(batch)) == pytest.approx(expected)


sizes = st.lists(st.integers(1, 5), min_size=1, max_size=5)


@given(sizes, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_entropy_knows_neither_order_nor_names_and_grows_when_a_cluster_splits(counts: list[int], random: Any) -> None:
    group = sized(*counts)
    n = len(group)
    layout, everyone = Layout.of([1] * n, [n]), torch.ones(n, dtype=torch.bool)

    def entropy(texts: list[str | None], monte_carlo: bool = False) -> float:
        return float(semantic_entropy(answers(texts).cluster, layout, everyone, None, monte_carlo))

    shuffled = list(group)
    random.shuffle(shuffled)
    assert entropy([f"<{a}>" for a in shuffled]) == pytest.approx(entropy(group), abs=1e-12)
    assert entropy(group) <= math.log(n) + 1e-12
    assert entropy(group, monte_carlo=True) <= math.log(n) + 1e-12
    big = max(range(len(counts)), key=lambda k: counts[k])
    if counts[big] > 1:
        split = ["new" if i == sum(counts[:big]) else a for i, a in enumerate(group)]
        assert entropy(split) > entropy(group)


def test_the_unscored_count_nowhere() -> None:
    batch = answers(["a", "a", "b", "c"], scored=[True, True, True, False])
    three = answers(["a", "a", "b"])
    part = SemanticEntropyWeight(alpha=0.5, likelihood=False)
    close(part.weights(batch), part.weights(three))
    assert ClusterShare()(batch).tolist() == [*ClusterShare()(three).tolist(), 0.0]
    lone = answers(["a", "b"], scored=[True, False])
    assert part.weights(lone).tolist() == [1.0]  # log 1 = 0: nothing to compare


def test_the_forms_of_the_scale_by_hand() -> None:
    share = tensor([0.0, 0.25, 1.0])
    close(uncertainty_scale(share, 0.8, "linear"), [1, 0.8, 0.2])
    close(uncertainty_scale(share, 2.0, "linear"), [1, 0.5, 0])
    close(uncertainty_scale(share, 0.8, "exponential"), [1, math.exp(-0.2), math.exp(-0.8)])
    close(uncertainty_scale(share, 2.0, "focal"), [1, 0.5625, 0])
    for form in ("linear", "exponential", "focal"):
        assert uncertainty_scale(share, 0.0, form).tolist() == [1.0, 1.0, 1.0]


# -- agreement as reward ------------------------------------------------------------------------------------
APART = Clusters(missing="apart")
SEVEN: list[str | None] = ["a", "a", "a", "b", "b", "", "c"]


def test_shares_of_seven_by_hand() -> None:
    batch = answers(SEVEN, clusters=APART)
    close(ClusterShare(empty=None)(batch), [3 / 7] * 3 + [2 / 7] * 2 + [1 / 7] * 2)
    close(ClusterShare()(batch), [3 / 7] * 3 + [2 / 7] * 2 + [0, 1 / 7])
    close(ClusterShare(empty=-0.5)(batch), [3 / 7] * 3 + [2 / 7] * 2 + [-0.5, 1 / 7])
    close(MajorityVote()(batch), [1, 1, 1, 0, 0, 0, 0])
    close(MajorityVote()(answers(["a", "b", "a", "b", "c"])), [1, 1, 1, 1, 0])
    close(MajorityVote()(answers(["a", "", "", ""], clusters=Clusters())), [1, 0, 0, 0])


@given(sizes)
@settings(max_examples=50, deadline=None)
def test_the_mean_reward_is_the_collision_probability(counts: list[int]) -> None:
    n = sum(counts)
    reward = ClusterShare(below=None)(answers(sized(*counts)))
    mean = float(reward.mean())
    assert mean == pytest.approx(sum((c / n) ** 2 for c in counts))
    assert (mean == 1) == (len(counts) == 1)
    assert (mean == pytest.approx(1 / n)) == (len(counts) == n)


def test_a_group_that_disagrees_throughout_gets_nothing() -> None:
    for n in range(2, 20):
        batch = answers(sized(*[1] * n))
        assert ClusterShare()(batch).tolist() == [0.0] * n
        close(ClusterShare(below=None)(batch), [1 / n] * n)


def test_the_guards_by_hand() -> None:
    # entropies over log 8: 0, 1/3, 0.3538 and 1; largest shares 1, 1/2, 3/4, 1/8
    groups = [sized(8), sized(4, 4), sized(6, 1, 1), sized(*[1] * 8)]
    batch = answers(*groups)
    assert ClusterShare().trusted(batch).tolist() == [True, True, True, False]
    assert ClusterShare(below=0.34).trusted(batch).tolist() == [True, True, False, False]
    assert ClusterShare(below=0.34, above=0.1).trusted(batch).tolist() == [False, True, False, False]
    assert ClusterShare(below=None, least=0.2).trusted(batch).tolist() == [True, True, True, False]
    assert ClusterShare(below=None, least=0.6).trusted(batch).tolist() == [True, False, True, False]


def test_labels_and_names_are_never_read() -> None:
    plain = answers(SEVEN, clusters=APART)
    renamed = answers([f"x{a}" if a else a for a in SEVEN], clusters=APART)
    gold = plain.with_columns(None, answer=["garbage"], score=torch.rand(7), reward=torch.rand(7))
    for other in (renamed, gold):
        assert torch.equal(ClusterShare()(plain), ClusterShare()(other))


def test_the_expected_gradient_is_that_of_the_collision_probability() -> None:
    """Over all 27 groups of three of three answers: E[R_1 grad log P(c_1)] = (G-1)/(2G) grad sum_c P(c)^2.

    E[R_1 | c_1] = (1 + (G-1) P(c_1))/G, and the 1/G has no gradient in expectation.
    """
    theta = tensor([0.5, 0.4, 0.0]).requires_grad_()
    p = theta.softmax(0)
    part = ClusterShare(below=None)
    expected = torch.zeros(3, dtype=torch.float64)
    for group in itertools.product(range(3), repeat=3):
        chance = float(p[list(group)].prod())
        reward = float(part(answers([str(c) for c in group]))[0])
        (slope,) = torch.autograd.grad(p[group[0]].log(), theta, retain_graph=True)
        expected += chance * reward * slope
    (collision,) = torch.autograd.grad((p * p).sum(), theta, retain_graph=True)
    close(expected, collision / 3, 1e-12)
    # what is below the collision probability shrinks, right or wrong
    assert torch.equal(expected > 0, p.detach() > float((p * p).sum()))


@pytest.mark.parametrize(
    "made",
    [
        lambda: Clusters(of="meaning"),
        lambda: Clusters(missing="drop"),
        lambda: SemanticEntropyWeight(form="cubic"),
        lambda: SemanticEntropyWeight(alpha=-0.1),
    ],
)
def test_settings_that_mean_nothing_are_refused(made: Any) -> None:
    with pytest.raises(ConfigError):
        made()
