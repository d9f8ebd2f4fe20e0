"""Several components of a reward, made one number or one advantage."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import batch_of, close
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.advantage import GroupNormalised
from unipo.parts.components import ComponentGate, ComponentMin, ComponentsNormalised, ComponentSum


def vectors(*rows: dict[str, float | None], **columns: Any) -> Batch:
    """One group whose responses have these components."""
    n = len(rows)
    return batch_of([1] * n, [n], reward=[0.0] * n, reward_parts=list(rows), **columns)


TWO = vectors({"help": 1.0, "safe": 0.40}, {"help": 0.0, "safe": 0.49})


def test_the_sum_and_the_normalised_sum_disagree() -> None:
    # sum: 0.5 (1 + 0.40) = 0.70 and 0.245, the first is better; z-scores (+, -) and (-, +) cancel
    close(ComponentSum()(TWO), [0.70, 0.245])
    summed = GroupNormalised(eps=0)(TWO.with_columns(None, reward=ComponentSum()(TWO)))
    close(summed, [0.5**0.5, -(0.5**0.5)])
    close(ComponentsNormalised(eps=0)(TWO), [0.0, 0.0], 1e-12)


def test_the_scale_of_a_component_matters_to_the_sum_only() -> None:
    def of(scale: float) -> Batch:
        rows = ((1.0, 0.2), (0.0, 0.3), (0.5, 0.7))
        return vectors(*[{"help": help_, "safe": scale * safe} for help_, safe in rows])

    def summed(batch: Batch) -> Tensor:
        return GroupNormalised(eps=0)(batch.with_columns(None, reward=ComponentSum(clip=False)(batch)))

    # sums .6 .15 .6, then 1.5 1.5 3.75: another order
    third = 3**-0.5
    close(summed(of(1)), [third, -2 * third, third])
    close(summed(of(10)), [-third, -third, 2 * third])
    # help: (1, -1, 0); safe: (-.2, -.1, .3) / sqrt(.07)
    apart = [0.5 * (1 - 0.2 / 0.07**0.5), 0.5 * (-1 - 0.1 / 0.07**0.5), 0.5 * 0.3 / 0.07**0.5]
    for scale in (1, 10):
        close(ComponentsNormalised(eps=0, clip=False)(of(scale)), apart)


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0)])
def test_one_component_alone_is_grpo_on_it(weights: tuple[float, float]) -> None:
    name = ("help", "safe")[weights.index(1.0)]
    own = TWO.with_columns(None, reward=torch.tensor([r[name] for r in TWO.reward_parts], dtype=torch.float64))
    expected = GroupNormalised()(own)
    for part in (ComponentSum(names=("help", "safe"), weights=weights), ComponentSum(names=(name,))):
        close(GroupNormalised()(TWO.with_columns(None, reward=part(TWO))), expected)
    close(ComponentsNormalised(names=(name,))(TWO), expected)
    close(ComponentsNormalised(names=("help", "safe"), weights=weights)(TWO), expected)


def test_a_constant_component_adds_exactly_nothing() -> None:
    batch = vectors({"a": 0.1, "b": 0.3}, {"a": 0.1, "b": 0.6}, {"a": 0.1, "b": 0.9})
    # b: mean 0.6, std 0.3
    close(ComponentsNormalised(eps=1e-12)(batch), [-0.5, 0.0, 0.5])
    still = vectors(*[{"a": 0.1, "b": 0.7}] * 3)
    assert ComponentsNormalised()(still).tolist() == [0.0, 0.0, 0.0]


def test_the_gate_multiplies_and_shuts() -> None:
    batch = vectors({"safe": 0.5, "help": 1.0, "kind": 0.0}, {"safe": 0.1, "help": 1.0, "kind": 1.0})
    close(ComponentGate(gate="safe")(batch), [0.25, 0.1])
    close(ComponentGate(gate="safe", least=0.2)(batch), [0.25, -1.0])
    close(ComponentGate(gate="safe", names=("help", "kind"), weights=(0.8, 0.2))(batch), [0.4, 0.1])


def test_a_gate_without_other_components_is_an_error() -> None:
    with pytest.raises(DataError, match="no component beside the gate 'safe'"):
        ComponentGate(gate="safe")(vectors({"safe": 0.5}, {"safe": 1.0}))
    with pytest.raises(ConfigError, match="ComponentGate: 3 weights for the components help, kind; name them"):
        ComponentGate(gate="safe", weights=(1.0, 1.0, 1.0))(vectors({"safe": 0.5, "help": 1.0, "kind": 0.0}))


def test_the_lowest_correlation_between_two_components_is_logged() -> None:
    # a and b move against each other, c with a; d never moves and has no correlation
    rows = [{"a": x, "b": 1 - x, "c": x / 2, "d": 0.3} for x in (0.0, 0.5, 1.0)]
    batch = vectors(*rows, {}, scored=[True, True, True, False])
    assert ComponentSum().measure(batch) == pytest.approx({"components/correlation": -1.0})
    assert ComponentsNormalised(names=("a", "c", "d")).measure(batch) == pytest.approx({"components/correlation": 1.0})
    assert ComponentSum(names=("a", "d")).measure(batch) == {}
    assert ComponentSum(names=("a",)).measure(batch) == {}


def test_a_gate_is_one_of_the_components_that_are_compared() -> None:
    # help against safe: -1, help against kind: 1; the names of the others change nothing
    rows = [{"safe": 1 - x, "help": x, "kind": x / 2} for x in (0.0, 0.5, 1.0)]
    for names in ((), ("help", "kind")):
        for weights in ((), (0.7, 0.3)):
            part = ComponentGate(gate="safe", names=names, weights=weights)
            assert part.measure(vectors(*rows)) == pytest.approx({"components/correlation": -1.0})
    assert ComponentGate(gate="kind", names=("help",)).measure(vectors(*rows)) == pytest.approx(
        {"components/correlation": 1.0}
    )


def test_every_part_measures_the_components_it_reads() -> None:
    for part in (ComponentSum(), ComponentMin(), ComponentGate(gate="safe"), ComponentsNormalised()):
        assert part.measure(TWO) == pytest.approx({"components/correlation": -1.0})
        part(TWO)


def test_the_worst_component_and_values_beyond_one() -> None:
    batch = vectors({"a": 1.2, "b": 0.9}, {"a": -0.1, "b": 0.5})
    close(ComponentMin()(batch), [0.9, 0.0])
    close(ComponentSum()(batch), [0.95, 0.25])
    close(ComponentSum(clip=False)(batch), [1.05, 0.2])


def test_components_of_a_component_are_not_counted_twice() -> None:
    batch = vectors(
        {"maths": 1.0, "maths/correct": 1.0, "form": 0.0}, {"maths": 0.0, "maths/correct": 0.0, "form": 1.0}
    )
    close(ComponentSum()(batch), [0.5, 0.5])
    close(ComponentSum(names=("maths/correct",))(batch), [1.0, 0.0])


def test_the_unscored_are_left_alone_and_a_missing_component_is_named() -> None:
    batch = vectors({"a": 1.0}, {}, {"a": 0.0}, scored=[True, False, True])
    close(ComponentsNormalised(eps=0)(batch), [0.5**0.5, 0.0, -(0.5**0.5)])
    with pytest.raises(DataError, match=r"response 1 has no value of the reward component 'b' \(it has: a\)"):
        ComponentSum()(vectors({"a": 1.0, "b": 1.0}, {"a": 0.0}))
    with pytest.raises(DataError, match="response 0 has no value of the reward component 'a'"):
        ComponentSum()(vectors({"a": None}))
    with pytest.raises(DataError, match="reports no components"):
        ComponentSum()(vectors({}, {}))


def test_weights_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 weights for 2 components"):
        ComponentSum(names=("a", "b"), weights=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="1 weights for the components help, safe"):
        ComponentSum(weights=(1.0,))(TWO)
    with pytest.raises(ConfigError, match="ComponentMin takes no weights"):
        ComponentMin(weights=(1.0,))
    with pytest.raises(ConfigError, match="ComponentGate needs gate="):
        ComponentGate()
