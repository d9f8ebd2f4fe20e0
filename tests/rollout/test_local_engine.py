"""What the engine writes is what the policy would say, whoever else is in the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.policy.models import CONFIGS, VOCAB, make
from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.policy.model import Policy, load_policy
from unipo.policy.spec import PolicySpec
from unipo.rollout.engine import Request, Rollout, Sampling
from unipo.rollout.local import LocalEngine
from unipo.rollout.sampling import choose, uniform
from unipo.starter import starter_path

ENDS = (5, 6, 7, 8, 9)


def requests(seed: int = 0) -> list[Request]:
    g = torch.Generator().manual_seed(seed)
    shapes = ((4, 3), (9, 5), (4, 2), (2, 6))
    return [Request(torch.randint(VOCAB, (n,), generator=g).tolist(), k, 100 + n) for n, k in shapes]


def as_batch(asked: list[Request], groups: list[list[Rollout]]) -> Batch:
    flat = [r for group in groups for r in group]
    layout = Layout.of([len(r.tokens) for r in flat], [r.n for r in asked], [len(r.prompt) for r in asked])
    return Batch.of(
        layout,
        context=torch.tensor([t for r in asked for t in r.prompt]),
        tokens=torch.cat([r.tokens for r in flat]),
        trainable=torch.ones(layout.n_tokens, dtype=torch.bool),
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("name", CONFIGS)
def test_log_probs_are_the_trainers_to_float_noise(name: str, temperature: float) -> None:
    policy = Policy(make(name), None, PolicySpec(), temperature)
    asked = requests()
    groups = LocalEngine(policy, 64, ENDS).generate(asked, Sampling(temperature, max_tokens=20))
    said = torch.cat([r.logp for g in groups for r in g])
    torch.testing.assert_close(said, policy.logp(as_batch(asked, groups)), rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma2"])
def test_how_many_rows_are_written_at_once_changes_no_token(name: str) -> None:
    policy = Policy(make(name), None)
    first = LocalEngine(policy, 64, ENDS).generate(requests(), Sampling(max_tokens=20))
    for rows in (1, 3, 7):
        again = LocalEngine(policy, rows, ENDS).generate(requests(), Sampling(max_tokens=20))
        for a, b in zip((r for g in first for r in g), (r for g in again for r in g), strict=True):
            assert torch.equal(a.tokens, b.tokens)
            torch.testing.assert_close(a.logp, b.logp, rtol=0, atol=2e-5)


def test_the_order_of_requests_changes_no_token() -> None:
    policy = Policy(make("qwen3"), None)
    forward = LocalEngine(policy, 5, ENDS).generate(requests(), Sampling(max_tokens=20))
    backward = LocalEngine(policy, 5, ENDS).generate(requests()[::-1], Sampling(max_tokens=20))[::-1]
    assert all(
        torch.equal(a.tokens, b.tokens)
        for x, y in zip(forward, backward, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_greedy_decoding_equals_transformers(name: str) -> None:
    model, plain = make(name), make(name)
    asked = requests()
    ours = LocalEngine(Policy(model, None), 64, ()).generate(asked, Sampling(0.0, max_tokens=12))
    for request, group in zip(asked, ours, strict=True):
        ids = torch.tensor([list(request.prompt)])
        theirs = plain.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            min_new_tokens=12,
            eos_token_id=None,
            pad_token_id=0,
        )
        for rollout in group:
            assert rollout.tokens.tolist() == theirs[0, ids.shape[1] :].tolist()
            assert rollout.truncated


def test_a_response_ends_with_its_end_token_or_is_marked_as_cut_off() -> None:
    policy = Policy(make("qwen3"), None)
    for group in LocalEngine(policy, 64, ENDS).generate(requests(), Sampling(max_tokens=20)):
        for r in group:
            assert (int(r.tokens[-1]) in ENDS) != r.truncated
            assert not any(t in ENDS for t in r.tokens[:-1].tolist())
            assert r.truncated == (len(r.tokens) == 20 and int(r.tokens[-1]) not in ENDS)
            assert len(r.tokens) == len(r.logp) == len(r.entropy)


def test_a_stop_text_ends_a_response_and_stays_in_it() -> None:
    policy = load_policy(PolicySpec(model=str(starter_path())))
    prompt = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": "347+586="}], add_generation_prompt=True, return_dict=False
    )
    ids = prompt["input_ids"] if isinstance(prompt, dict) else prompt
    group = LocalEngine(policy).generate([Request(ids, 4, 1)], Sampling(max_tokens=48, stop=("</think>",)))[0]
    for r in group:
        text = policy.tokenizer.decode(r.tokens.tolist())
        assert text.endswith("</think>")
        assert not r.truncated


def chances(n: int) -> torch.Tensor:
    return uniform(torch.arange(n), torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize("sampling", [Sampling(top_k=3), Sampling(top_p=0.6), Sampling(0.7, top_k=5, top_p=0.8)])
def test_truncated_sampling_records_the_renormalised_log_prob(sampling: Sampling) -> None:
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 11, generator=g)
    token, logp, _ = choose(logits.clone(), sampling, chances(64))
    for row in range(64):
        p = torch.softmax(logits[row].double() / sampling.temperature, -1)
        order = p.argsort(descending=True)
        kept = order[: sampling.top_k] if sampling.top_k else order
        if sampling.top_p < 1:
            q = p[kept] / p[kept].sum()
            kept = kept[(q.cumsum(0) - q) < sampling.top_p]
        assert int(token[row]) in kept.tolist()
        assert logp[row].exp().item() == pytest.approx(float(p[token[row]] / p[kept].sum()), abs=1e-5)


def test_sampled_frequencies_follow_the_distribution() -> None:
    p = torch.tensor([0.5, 0.25, 0.125, 0.125, 0.0])
    n = 40_000
    token, logp, entropy = choose(p.log().expand(n, -1).clone(), Sampling(), chances(n))
    counts = torch.bincount(token, minlength=5).double()
    assert counts[4] == 0
    chi = float(((counts[:4] - n * p[:4]) ** 2 / (n * p[:4])).sum())
    assert chi < 16.27  # the 0.999 quantile with three degrees of freedom
    assert entropy[0].item() == pytest.approx(1.75 * 0.6931472, abs=1e-6)
    torch.testing.assert_close(logp, p.log()[token], rtol=0, atol=1e-6)


def test_uniform_numbers_are_fixed_by_seed_and_position() -> None:
    seed, position = torch.arange(20_000), torch.full((20_000,), 3)
    u = uniform(seed, position)
    assert torch.equal(u, uniform(seed, position))
    assert bool(((u >= 0) & (u < 1)).all())
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(u.var()) == pytest.approx(1 / 12, abs=0.003)
    other = uniform(seed, position + 1)
    assert abs(float(torch.corrcoef(torch.stack([u, other]))[0, 1])) < 0.03


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Request([], 1), "empty prompt"),
        (Request([1], 0), "asks for 0 responses"),
        (Request([1] * 120, 1), "do not fit"),
    ],
)
def test_impossible_requests_are_named(asked: Request, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LocalEngine(Policy(make("llama"), None), 4, ()).generate([asked], Sampling(max_tokens=20))


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_tokens": 0}])
def test_impossible_samplings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**settings)
