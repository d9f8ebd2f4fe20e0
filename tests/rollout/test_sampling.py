"""The choice of a token: one number per (seed, position), the whole distribution, however long the vocabulary."""

from __future__ import annotations

import pytest
import torch

from unipo.rollout.engine import Sampling
from unipo.rollout.sampling import choose, mix, sample_seed, uniform
from unipo.training.source import prompt_seed

# From the same formula written with Python's own integers.
LITERAL = [0.6524484863740322, 0.7012121095215252, 0.36818951565166946, 0.7552852342481882]


def test_splitmix_gives_the_published_numbers() -> None:
    # The finaliser of SplitMix64 on multiples of its increment is its output stream for seed 0.
    golden = -0x61C8864680B583EB
    stream = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    for i, expected in enumerate(stream, 1):
        assert int(mix(torch.tensor(golden) * i)) & (2**64 - 1) == expected


def test_uniform_numbers_are_these_on_every_machine() -> None:
    seed, position = torch.tensor([0, 0, 1, -5]), torch.tensor([0, 1, 0, 1000])
    found = uniform(seed, position).tolist()
    assert found == pytest.approx(LITERAL, abs=0)
    assert len({sample_seed(3, i) for i in range(100)}) == 100


def test_seeds_beyond_64_bits_are_seeds_too() -> None:
    large = prompt_seed(2**31, 0)
    assert len({sample_seed(large + i, j) for i in range(10) for j in range(10)}) == 100
    assert sample_seed(2**62, 0) == sample_seed(2**62, 0)


@pytest.mark.parametrize("vocab", [5, 2048, 2049, 5000])
def test_the_token_is_where_the_running_probability_passes_the_number(vocab: int) -> None:
    g = torch.Generator().manual_seed(vocab)
    logits = 2 * torch.randn(40, vocab, generator=g)
    u = torch.rand(40, generator=g, dtype=torch.float64)
    token, logp, entropy = choose(logits.clone(), Sampling(0.9), u)
    p = torch.softmax(logits.double() / 0.9, -1)
    running = p.cumsum(-1)
    after = running.gather(1, token[:, None]).squeeze(1)
    before = after - p.gather(1, token[:, None]).squeeze(1)
    assert bool((before <= u + 1e-6).all())
    assert bool((after >= u - 1e-6).all())
    torch.testing.assert_close(logp.double(), p.log().gather(1, token[:, None]).squeeze(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(p * p.log()).sum(-1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("vocab", [64, 4096])
def test_impossible_tokens_are_never_chosen_at_the_ends_of_the_interval(vocab: int) -> None:
    logits = torch.full((4, vocab), float("-inf"))
    logits[:, [3, vocab // 2]] = 0.0
    u = torch.tensor([0.0, 0.49999, 0.5, 1 - 2.0**-53], dtype=torch.float64)
    token, logp, entropy = choose(logits, Sampling(), u)
    assert token.tolist() == [3, 3, vocab // 2, vocab // 2]
    torch.testing.assert_close(logp, torch.full((4,), -0.6931472))
    torch.testing.assert_close(entropy, torch.full((4,), 0.6931472))


def test_a_vocabulary_searched_in_blocks_keeps_its_frequencies() -> None:
    n, vocab = 20_000, 3000
    logits = torch.full((vocab,), -30.0)
    likely = torch.tensor([0, 63, 64, 1500, 2999])
    p = torch.tensor([0.4, 0.1, 0.2, 0.05, 0.25])
    logits[likely] = p.log()
    chances = uniform(torch.arange(n), torch.zeros(n, dtype=torch.int64))
    token = torch.cat([choose(logits.repeat(len(c), 1), Sampling(), c)[0] for c in chances.split(2000)])
    counts = torch.bincount(token, minlength=vocab)[likely].double()
    assert counts.sum() == n
    assert float(((counts - n * p) ** 2 / (n * p)).sum()) < 18.47  # the 0.999 quantile, four degrees of freedom


def test_greedy_takes_the_likeliest_token_surely() -> None:
    token, logp, entropy = choose(torch.tensor([[0.0, 3.0, 1.0]]), Sampling(0.0), torch.zeros(1, dtype=torch.float64))
    assert (token.item(), logp.item(), entropy.item()) == (1, 0.0, 0.0)
