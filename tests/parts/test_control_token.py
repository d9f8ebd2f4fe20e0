"""DeGRPO: the first token's own denominator, and rewards by mode."""

from __future__ import annotations

import pytest
import torch
from by_hand import batch_of, close, value_and_gradient
from torch import Tensor

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.parts.average import SequenceMean, TokenMean
from unipo.parts.control_token import ControlSplit, ModeReward
from unipo.parts.objective import Clipped


def two(lengths: tuple[int, int] = (4, 8)) -> Batch:
    """Two responses with advantages 1 and -1 at ratio 1."""
    n = sum(lengths)
    advantage = torch.cat([torch.ones(lengths[0]), -torch.ones(lengths[1])]).double()
    return batch_of(lengths, logp=-torch.ones(n).double(), old_logp=-torch.ones(n).double(), advantage=advantage)


def loss_and_gradient(average: TokenMean, batch: Batch) -> tuple[float, Tensor]:
    value, gradient = value_and_gradient(Clipped(), batch, average)
    return float((value * average.weights(batch)).sum()), gradient


def test_the_code_by_hand() -> None:
    # control tokens: mean(-1, 1) = 0; the rest: 3 tokens of -1 and 7 of +1 over 10
    assert loss_and_gradient(ControlSplit(alpha=1e-3), two())[0] == pytest.approx(0.4)


def test_the_paper_by_hand() -> None:
    assert loss_and_gradient(ControlSplit(alpha=1e-3, rest="sequence"), two())[0] == pytest.approx(0.0)
    weight = ControlSplit(alpha=0.5, rest="sequence").weights(two((3, 1)))
    close(weight, [0.25, 0.25, 0.25, 0.25])


@pytest.mark.parametrize("rest", ["batch", "sequence"])
def test_the_control_tokens_gradient_does_not_depend_on_the_length(rest: str) -> None:
    short, long = (loss_and_gradient(ControlSplit(alpha=0.1, rest=rest), two(n))[1] for n in ((4, 8), (40, 80)))
    close(short[[0, 4]], [-0.05, 0.05])
    close(long[[0, 40]], short[[0, 4]])
    plain = [loss_and_gradient(SequenceMean(), two(n))[1][0] for n in ((4, 8), (40, 80))]
    close(plain[0], 10 * plain[1])


@pytest.mark.parametrize("rest", ["batch", "sequence"])
def test_with_alpha_zero_the_control_token_is_not_trained(rest: str) -> None:
    gradient = loss_and_gradient(ControlSplit(alpha=0.0, rest=rest), two())[1]
    assert gradient[[0, 4]].tolist() == [0.0, 0.0]
    assert bool((gradient[[1, 2, 3, 5, 6, 7]] != 0).all())


def test_the_token_mean_is_recovered() -> None:
    # alpha n_rest/N = n_control/N on control tokens and 1/n_rest * n_rest/N on the others
    split = loss_and_gradient(ControlSplit(alpha=2 / 10), two())[1]
    close(split * 10 / 12, loss_and_gradient(TokenMean(), two())[1])


def test_masked_tokens_are_in_neither_part() -> None:
    batch = two((3, 2)).with_columns(None, mask=torch.tensor([False, True, False, True, False]))
    close(ControlSplit(alpha=0.1).weights(batch), [0, 1, 0, 0.1, 0])
    nothing = batch.with_columns(None, mask=torch.zeros(5, dtype=torch.bool))
    close(ControlSplit().weights(nothing), [0.0] * 5)


# -- rewards by mode -------------------------------------------------------------------------------------------
def rewards(texts: list[str], score: list[float], **settings: object) -> Tensor:
    batch = batch_of([1] * len(texts), score=score, reward=[0.3] * len(texts)).with_columns(None, text=texts)
    return ModeReward(**settings)(batch)


def test_rewards_by_hand() -> None:
    texts = ["<short>4", "<think>4</think>", "<short>5", "<think>5", "4"]
    close(rewards(texts, [1, 1, 0, 0, 1]), [1.0, 0.5, -1.0, -1.0, -1.0])


def test_the_first_tag_is_the_mode() -> None:
    texts = ["a <think> b <short>", " <short> <think>", "<think>"]
    close(rewards(texts, [1, 1, 1], gamma=0.2), [0.8, 1.0, 0.8])
    close(rewards(texts, [1, 1, 1], gamma=0.2, anywhere=False), [-1.0, -1.0, 0.8])


def test_unscored_responses_stay_without_a_reward() -> None:
    batch = batch_of([1, 1], score=[1.0, 1.0], reward=[1.0, float("nan")], scored=[True, False])
    value = ModeReward()(batch.with_columns(None, text=["<short>", "<short>"]))
    assert float(value[0]) == 1.0
    assert bool(value[1].isnan())


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="'batch' or 'sequence'"):
        ControlSplit(rest="paper")
