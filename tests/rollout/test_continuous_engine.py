"""Sampling continuous tokens: exact log-probabilities, independence of neighbours, base CoT2 at temperature 0."""

from __future__ import annotations

import pytest
import torch

from tests.policy.models import make
from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.parts.continuous import ContinuousStep, DirichletStep, SampledTokens, SoftTarget
from unipo.policy.continuous import ContinuousPolicy
from unipo.rollout.continuous import ContinuousEngine
from unipo.rollout.engine import Engine, Request, Rollout, Sampling

REQUESTS = [Request((3, 4, 5), 3, 11), Request((9, 1), 2, 12), Request((7, 7, 2, 5, 6), 4, 13)]
RULES: list[ContinuousStep] = [
    SampledTokens(3),
    SampledTokens(1),
    SampledTokens(2, normalised=False),
    DirichletStep(),
    DirichletStep(scale=5.0, floor=0.008),
]


def engine(rule: ContinuousStep, family: str = "gpt2", steps: int = 4, rows: int = 128) -> ContinuousEngine:
    return ContinuousEngine(ContinuousPolicy(make(family).double(), None, step=rule), steps, rows)


def batch_of(groups: list[list[Rollout]]) -> Batch:
    flat = [r for g in groups for r in g]
    layout = Layout.of([len(r.tokens) for r in flat], [len(g) for g in groups], [len(r.prompt) for r in REQUESTS])
    return Batch.of(
        layout,
        context=torch.tensor([t for r in REQUESTS for t in r.prompt]),
        tokens=torch.cat([r.tokens for r in flat]),
        trainable=torch.ones(layout.n_tokens, dtype=torch.bool),
        behaviour_logp=torch.cat([r.logp for r in flat]),
        behaviour_entropy=torch.cat([r.entropy for r in flat]),
        **{name: torch.cat([r.columns[name] for r in flat]) for name in flat[0].columns},
    )


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_trainer_gives_every_step_the_log_probability_it_was_sampled_with(
    rule: ContinuousStep, family: str
) -> None:
    e = engine(rule, family)
    assert isinstance(e, Engine)
    batch = batch_of(e.generate(REQUESTS, Sampling()))
    live = e.policy.columns(batch, batch.trainable, entropy=True)
    scale = float(batch.step_log_weights.masked_fill(batch.step_log_weights.isinf(), 0).abs().max()) + 1
    torch.testing.assert_close(live["logp"].detach(), batch.behaviour_logp, rtol=1e-7, atol=1e-9 * scale)
    torch.testing.assert_close(live["entropy"].detach(), batch.behaviour_entropy, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_responses_depend_on_nobody_else(rule: ContinuousStep) -> None:
    together, narrow = engine(rule).generate(REQUESTS, Sampling()), engine(rule, rows=2).generate(REQUESTS, Sampling())
    alone = [engine(rule).generate([r], Sampling())[0] for r in REQUESTS]
    for other in (narrow, alone):
        for a, b in zip((r for g in together for r in g), (r for g in other for r in g), strict=True):
            assert torch.equal(a.tokens, b.tokens)
            assert torch.equal(a.columns["step_ids"][:, :1], b.columns["step_ids"][:, :1])
            torch.testing.assert_close(
                a.columns["step_log_weights"], b.columns["step_log_weights"], atol=1e-6, rtol=1e-6
            )
    assert len({tuple(r.tokens.tolist()) for g in together for r in g}) > 5


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_a_rollout_holds(rule: ContinuousStep) -> None:
    width = rule.width(97)
    for group, request in zip(engine(rule).generate(REQUESTS, Sampling()), REQUESTS, strict=True):
        assert len(group) == request.n
        for r in group:
            ids, weights = r.columns["step_ids"], r.columns["step_log_weights"]
            assert ids.shape == weights.shape == (4, width)
            torch.testing.assert_close(weights.exp().sum(-1), torch.ones(4, dtype=torch.float64))
            heaviest = ids.gather(1, weights.argmax(-1, keepdim=True)).squeeze(1)
            assert torch.equal(r.tokens, heaviest)
            assert weights[-1, 0] == 0
            assert not r.truncated


def test_temperature_zero_feeds_the_whole_softmax_back_and_takes_the_likeliest_answer() -> None:
    e = engine(SampledTokens(3))
    got = e.generate(REQUESTS, Sampling(temperature=0.0))
    model = make("gpt2").double()
    embed = model.get_input_embeddings()
    for request, group in zip(REQUESTS, got, strict=True):
        row, tokens = embed(torch.tensor(request.prompt)), []
        for _ in range(4):
            logits = model(inputs_embeds=row[None]).logits[0, -1]
            tokens.append(int(logits.argmax()))
            row = torch.cat([row, (logits.softmax(-1) @ embed.weight)[None]])
        for r in group:
            assert r.tokens.tolist() == tokens
            assert not r.columns


def test_samples_may_be_numbered_from_elsewhere() -> None:
    whole = engine(SampledTokens(3)).generate([Request((3, 4, 5), 3, 11)], Sampling())[0]
    last = engine(SampledTokens(3)).generate([Request((3, 4, 5), 1, 11, first=2)], Sampling())[0][0]
    assert torch.equal(last.columns["step_ids"][:, 0], whole[2].columns["step_ids"][:, 0])


def test_many_sampled_tokens_come_to_base_cot2() -> None:
    """K -> infinity, not normalised: what is fed back, and so the last distribution, is that of the whole softmax."""
    e = engine(SampledTokens(50_000, normalised=False))
    r = e.generate([Request((3, 4, 5), 1, 1)], Sampling())[0][0]
    model = make("gpt2").double()
    embed = model.get_input_embeddings()
    row = embed(torch.tensor([3, 4, 5]))
    for _ in range(3):
        row = torch.cat([row, (model(inputs_embeds=row[None]).logits[0, -1].softmax(-1) @ embed.weight)[None]])
    expected = model(inputs_embeds=row[None]).logits[0, -1].log_softmax(-1)[r.tokens[-1]]
    assert float(r.logp[-1]) == pytest.approx(float(expected.detach()), abs=0.01)


def test_a_single_step_is_one_token() -> None:
    groups = engine(SampledTokens(3), steps=1).generate(REQUESTS, Sampling())
    assert all(r.columns["step_ids"].shape == (1, 1) for g in groups for r in g)


def test_what_cannot_be_sampled_is_refused() -> None:
    e = engine(SampledTokens(2))
    for sampling in (Sampling(top_k=5), Sampling(max_tokens=3), Sampling(stop=("x",))):
        with pytest.raises(ConfigError):
            e.generate(REQUESTS, sampling)
    with pytest.raises(DataError):
        e.generate([Request((), 1, 0)], Sampling())
    with pytest.raises(DataError):
        e.generate([Request((1,) * 126, 1, 0)], Sampling())
    for asked in ({"prefix": (4,)}, {"limit": 2}):
        with pytest.raises(ConfigError, match="written whole"):
            e.generate([Request((1,), 1, 0, **asked)], Sampling())
    with pytest.raises(ConfigError, match="soft targets"):
        engine(SoftTarget()).generate(REQUESTS, Sampling())
