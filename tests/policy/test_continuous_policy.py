"""The packed forward over continuous tokens equals transformers' own forward, sequence by sequence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.policy.models import VOCAB, gradients, make, ragged
from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.continuous import ContinuousStep, DirichletStep, SampledTokens, SoftTarget
from unipo.parts.part import Divergence, Resampled
from unipo.policy.continuous import ContinuousPolicy, last_tokens, token_steps
from unipo.policy.model import Policy
from unipo.policy.value import ValueModel

FAMILIES = ("gpt2", "qwen3", "gemma3")
RULES: dict[str, ContinuousStep] = {
    "mts": SampledTokens(3),
    "mts-off": SampledTokens(3, normalised=False),
    "dirichlet": DirichletStep(scale=20.0),
    "soft": SoftTarget(),
    "self": SoftTarget("self"),
}


def steps(batch: Batch, rule: ContinuousStep, seed: int = 0) -> Batch:
    """The batch with random continuous tokens, its last tokens ordinary; without id 0, which is padding in gemma3 and
    gets no gradient from an embedding looked up by id."""
    n, width = batch.layout.n_tokens, 3 if isinstance(rule, SampledTokens) else 4
    g = torch.Generator().manual_seed(seed)
    ids = torch.stack([1 + torch.randperm(VOCAB - 1, generator=g)[:width] for _ in range(n)])
    weights = torch.rand(n, width, generator=g, dtype=torch.float64) + 0.1
    if isinstance(rule, SampledTokens):
        weights = torch.ones_like(weights)
    else:
        weights[::3, 3] = 0.0  # steps with fewer tokens than slots
    log_weights = (weights / weights.sum(-1, keepdim=True)).log()
    last, plain = last_tokens(batch), token_steps(batch.tokens, width)
    ids[last], log_weights[last] = plain["step_ids"][last], plain["step_log_weights"][last]
    return batch.with_columns(None, step_ids=ids, step_log_weights=log_weights)


def plain_score(rule: ContinuousStep, logits: Tensor, ids: Tensor, log_weights: Tensor, last: bool) -> Tensor:
    """One step from its formula, with distributions of torch."""
    if last:
        return logits.log_softmax(-1)[ids[0]]
    logp = (logits / rule.temperature).log_softmax(-1)[ids]
    real = log_weights > -math.inf
    if isinstance(rule, SampledTokens):
        return logp.sum() if rule.normalised else logp.mean()
    if isinstance(rule, SoftTarget):
        return (log_weights[real].exp() * (logp[real] - log_weights[real])).sum()
    assert isinstance(rule, DirichletStep)
    p = logp[real].exp().clamp(min=rule.floor)
    a = log_weights[real].exp()
    return torch.distributions.Dirichlet(rule.scale * p / p.sum()).log_prob(a / a.sum())


def plain(model: torch.nn.Module, batch: Batch, rule: ContinuousStep) -> Tensor:
    """[T] every sequence alone, with inputs_embeds and no cache."""
    layout = batch.layout
    embed = model.get_input_embeddings()  # type: ignore[operator]
    contexts = batch.context.split(layout.context_lengths.tolist())
    out = []
    for s, (start, length) in enumerate(zip(layout.seq_starts.tolist(), layout.seq_lengths.tolist(), strict=True)):
        row = embed(contexts[int(layout.seq_prompt[s])])
        for t in range(start, start + length):
            logits = model(inputs_embeds=row[None]).logits[0, -1]
            last = t == start + length - 1
            out.append(plain_score(rule, logits, batch.step_ids[t], batch.step_log_weights[t], last))
            if isinstance(rule, SoftTarget) and rule.feed == "self":
                z = logits.softmax(-1) @ embed.weight * float(getattr(embed, "embed_scale", 1.0))
            else:
                z = (batch.step_log_weights[t].exp()[:, None] * embed(batch.step_ids[t])).sum(0)
            row = torch.cat([row, z.to(row.dtype)[None]])
    return torch.stack(out)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", RULES)
def test_values_and_gradients_are_those_of_plain_transformers(family: str, name: str) -> None:
    rule = RULES[name]
    batch = steps(ragged(), rule)
    reference = make(family).double()
    expected = plain(reference, batch, rule)
    weights = torch.rand(len(expected), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    wanted = gradients(reference, (expected * weights).sum())

    policy = ContinuousPolicy(make(family).double(), None, step=rule)
    got = policy.columns(batch, torch.ones(len(weights), dtype=torch.bool))["logp"]
    tol = 1e-9 if family == "gpt2" else 2e-6  # the others' own layers round their norms to float32
    torch.testing.assert_close(got, expected.detach(), rtol=tol, atol=tol)
    found = gradients(policy.model, (got * weights).sum())
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        scale = float(value.abs().max())
        torch.testing.assert_close(found[key], value, rtol=20 * tol, atol=20 * tol * max(scale, 1.0), msg=key)


@pytest.mark.parametrize("name", RULES)
def test_only_required_steps_are_filled_and_micro_batches_agree(name: str) -> None:
    batch = steps(ragged(), RULES[name])
    policy = ContinuousPolicy(make("gpt2").double(), None, step=RULES[name])
    whole = policy.logp(batch)
    required = torch.rand(len(whole), generator=torch.Generator().manual_seed(2)) < 0.4
    some = policy.columns(batch, required, entropy=True)
    torch.testing.assert_close(some["logp"].detach(), torch.where(required, whole, 0.0), rtol=1e-10, atol=1e-10)
    assert bool((some["entropy"][required] > 0).all())
    assert not bool((some["entropy"][~required] != 0).any())
    pieces = torch.cat([policy.logp(piece) for piece in batch.split_by_tokens(9)])
    torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-10)


def test_entropy_is_that_of_the_tempered_step() -> None:
    rule = SampledTokens(3)
    batch = steps(ragged(), rule)
    policy = ContinuousPolicy(make("gpt2").double(), None, step=rule)
    plain_policy = ContinuousPolicy(make("gpt2").double(), None, step=SampledTokens(1))
    every = batch.tokens >= 0
    hot, cold = (p.columns(batch, every, entropy=True)["entropy"] for p in (policy, plain_policy))
    last = last_tokens(batch)
    torch.testing.assert_close(hot[last], cold[last])
    assert bool((hot[~last] > cold[~last]).all())


def test_one_sampled_token_is_the_ordinary_policy() -> None:
    batch = ragged()
    batch = batch.with_columns(None, **token_steps(batch.tokens))
    every = batch.tokens >= 0
    for temperature in (1.0, 0.7):
        ordinary = Policy(make("qwen3").double(), None, temperature=temperature)
        continuous = ContinuousPolicy(make("qwen3").double(), None, temperature=temperature, step=SampledTokens(1))
        a, b = ordinary.columns(batch, every)["logp"], continuous.columns(batch, every)["logp"]
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        ga, gb = gradients(ordinary.model, a.sum()), gradients(continuous.model, b.sum())
        for key in ga:
            torch.testing.assert_close(ga[key], gb[key], rtol=1e-8, atol=1e-8, msg=key)


def test_the_embeddings_fed_back_receive_gradient() -> None:
    """With the output layer untied, tokens that only stand in a mixture are reached through the input alone."""
    batch = steps(ragged(), RULES["soft"])
    policy = ContinuousPolicy(make("qwen3"), None, step=RULES["soft"])
    policy.columns(batch, batch.tokens >= 0)["logp"].sum().backward()
    grad = policy.causal.get_input_embeddings().weight.grad
    assert grad is not None
    forwarded = batch.layout.token_position < batch.layout.to_tokens(batch.layout.seq_lengths) - 1
    used = batch.step_ids[forwarded][batch.step_log_weights[forwarded] > -math.inf].unique()
    assert bool((grad[used].abs().sum(-1) > 0).all())
    assert batch.step_ids.requires_grad is False


def test_reference_and_errors() -> None:
    policy = ContinuousPolicy(make("gpt2"), None, step=SampledTokens(3))
    policy.make_reference()
    batch = steps(ragged(), SampledTokens(3))
    torch.testing.assert_close(policy.logp(batch, "reference"), policy.logp(batch))
    with pytest.raises(DataError, match="step_ids"):
        policy.logp(ragged())
    biased = make("gpt2")
    biased.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCAB))
    with pytest.raises(ConfigError, match="bias"):
        ContinuousPolicy(biased, None)


def test_parts_that_read_ordinary_tokens_are_refused() -> None:
    policy = ContinuousPolicy(make("gpt2"), None, step=SampledTokens(3))
    batch = steps(ragged(), SampledTokens(3))
    every = batch.tokens >= 0
    for asked in ({"against": Divergence()}, {"resampled": Resampled(2)}, {"value": torch.nn.Linear(4, 1)}):
        with pytest.raises(ConfigError, match="not for continuous ones"):
            policy.columns(batch, every, **asked)
    with pytest.raises(ConfigError, match="hidden states of ordinary tokens"):
        policy.per_place(batch, every, lambda logp, place, group: logp[:, 0])
    with pytest.raises(ConfigError, match="hidden states of ordinary tokens"):
        ValueModel(policy, shared=True).values(batch)
