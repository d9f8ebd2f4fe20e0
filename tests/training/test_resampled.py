"""Tokens drawn anew by the policy's own pass."""

from __future__ import annotations

import pytest
import torch

from tests.training.test_update import judged, trainer
from unipo.parts.part import Resampled


def test_draws_at_the_runs_temperature_estimate_entropy_and_probability() -> None:
    """kappa = 1: the mean log-prob of K draws estimates minus the entropy, the share of hits the token's probability."""
    run = trainer("otr")
    batch = judged(run)
    got = run.policy.columns(batch, batch.mask, entropy=True, resampled=Resampled(count=4000))
    logp, entropy, drawn, hits = (
        got[n].detach()[batch.mask].double() for n in ("logp", "entropy", "resampled_logp", "resampled_hits")
    )
    assert float(entropy.max()) > 0.1
    torch.testing.assert_close(drawn, -entropy, rtol=0, atol=0.15)
    torch.testing.assert_close(hits, logp.exp(), rtol=0, atol=0.04)
    assert abs(float((drawn + entropy).mean())) < 0.01


@pytest.mark.slow
def test_a_higher_temperature_draws_less_likely_tokens() -> None:
    run = trainer("otr")
    batch = judged(run)
    cold, hot = (
        run.policy.columns(batch, batch.mask, resampled=Resampled(256, t))["resampled_logp"].detach()[batch.mask].mean()
        for t in (1.0, 1.3)
    )
    assert float(hot) < float(cold) - 0.01


@pytest.mark.slow
def test_it_is_drawn_only_if_asked_for() -> None:
    run = trainer("sft")
    batch = judged(run)
    assert run.policy.columns(batch, batch.mask).keys() == {"logp"}
    assert run.step()[0]["passes/extra"] == 0.0
    assert trainer("otr").step()[0]["passes/extra"] == 0.0


@pytest.mark.slow
def test_draws_are_tempered_and_their_log_probs_are_not() -> None:
    run = trainer("otr")
    batch = judged(run)
    got = run.policy.columns(batch, batch.mask, resampled=Resampled(4000, 3.0))["resampled_logp"].detach()
    exact = run.policy.per_place(batch, batch.mask, lambda lp, place, group: ((lp / 3).softmax(1) * lp).sum(1))
    single = batch.mask & batch.layout.to_tokens(batch.layout.to_sequences(batch.layout.group_sizes == 1))
    assert bool(single.any())
    assert abs(float((got - exact)[single].double().mean())) < 0.02
