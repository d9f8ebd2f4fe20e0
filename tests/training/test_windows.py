"""Responses kept from step to step until they end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import metrics, quick
from tests.training.test_critic import OFF
from tests.training.test_resume import assert_same_run
from tests.training.test_update import trainer
from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.training.loop import Trainer
from unipo.training.window import WindowSampler


def windowed(window: int = 9, group: int = 1, **settings: Any) -> Trainer:
    changes = {"source.window": window, "source.group_size": group} | settings.pop("set", {})
    return trainer("t-ppo", set=changes, **settings)


def sampler(run: Trainer) -> WindowSampler:
    assert isinstance(run.source, WindowSampler)
    return run.source


def pieces(batch: Batch) -> dict[int, tuple[list[int], list[bool], list[int]]]:
    """(tokens, fresh, version) by sample."""
    layout = batch.layout
    out = {}
    for s, sample in enumerate(batch.sample_id.tolist()):
        span = slice(int(layout.seq_starts[s]), int(layout.seq_starts[s] + layout.seq_lengths[s]))
        out[sample] = (batch.tokens[span].tolist(), batch.fresh[span].tolist(), batch.version[span].tolist())
    return out


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.slow
def test_while_the_weights_stand_still_windows_write_the_responses_of_plain_sampling(group: int) -> None:
    run = windowed(group=group)
    whole = trainer("reinforce", prompts=30, set={"source.group_size": group}).collect()
    assert whole is not None
    expected = {s: t for s, (t, _, _) in _plain(whole.batch).items()}
    finished: dict[int, list[int]] = {}
    for _ in range(7):
        collected = run.collect()
        assert collected is not None
        done = ~collected.batch.unfinished
        for s, sample in enumerate(collected.batch.sample_id.tolist()):
            if done[s]:
                assert sample not in finished
                finished[sample] = pieces(collected.batch)[sample][0]
    assert len(finished) >= 3
    assert all(tokens == expected[sample] for sample, tokens in finished.items())


def _plain(batch: Batch) -> dict[int, tuple[list[int], list[bool], list[int]]]:
    all_ = torch.ones(batch.layout.n_tokens, dtype=torch.bool)
    return pieces(batch.with_columns(None, fresh=all_))


def test_every_token_is_trained_on_once_and_every_finished_response_valued_once() -> None:
    run = windowed(group=2)
    trained: Counter[tuple[int, int]] = Counter()
    valued: Counter[int] = Counter()
    longest: dict[int, int] = {}
    assert run.method.value is not None
    for _ in range(6):
        updates = run.policy.updates
        measured, batch = run.step()
        assert batch is not None
        layout = batch.layout
        active = run.method.value.active(batch)
        for s, (sample, (tokens, fresh, version)) in enumerate(pieces(batch).items()):
            trained.update((sample, place) for place, new in enumerate(fresh) if new)
            assert all((v == updates) == new for v, new in zip(version, fresh, strict=True))
            assert sum(fresh) <= 9
            longest[sample] = len(tokens)
            own = active[layout.token_seq == s]
            assert bool(own.all()) == (not bool(batch.unfinished[s]))
            assert bool(own.any()) == bool(own.all())
            valued[sample] += int(own.any())
        assert torch.equal(batch.mask, batch.fresh)
        assert measured["unfinished"] == float(batch.unfinished.double().mean())
        assert run.policy.updates == updates + 1
    assert set(trained.values()) == {1}
    assert sum(longest.values()) == len(trained)
    assert max(valued.values()) == 1


def test_log_probs_of_old_tokens_stay_those_of_the_weights_that_wrote_them() -> None:
    run = windowed(optim={"learning_rate": 1e-3}, set={"value.learning_rate": 1e-2})
    run.step()
    kept = {s.prompt.draw: s.drafts[0].written.logp.clone() for s in sampler(run).pool}
    assert kept
    _, batch = run.step()
    assert batch is not None
    for s, sample in enumerate(batch.sample_id.tolist()):
        if sample // 1_000_000 in kept:
            old = kept[sample // 1_000_000]
            start = int(batch.layout.seq_starts[s])
            assert torch.equal(batch.behaviour_logp[start : start + len(old)], old)


def test_the_pool_keeps_its_size_and_new_prompts_fill_what_is_free() -> None:
    run = windowed(window=12, prompts=5)
    for _ in range(5):
        before = len(sampler(run).pool)
        drawn = run.stream.drawn
        collected = run.collect()
        assert collected is not None
        assert collected.batch.layout.n_sequences == 5
        assert run.stream.drawn - drawn == 5 - before
        assert len(sampler(run).pool) == int(collected.batch.unfinished.sum())


def test_unfinished_responses_are_shown_to_no_reward_and_count_in_no_statistic() -> None:
    run = windowed(window=5)
    measured, batch = run.step()
    assert batch is not None
    if bool(batch.unfinished.all()):
        assert "reward/mean" not in measured
        assert measured["value/skipped"] == 1.0
    assert not bool(batch.truncated.any())
    assert not bool((batch.reward[batch.unfinished] != 0).any())
    assert all(x is None for x, open_ in zip(batch.extracted, batch.unfinished.tolist(), strict=True) if open_)


@pytest.mark.slow
def test_a_window_as_long_as_the_budget_is_ppo_with_a_monte_carlo_target(tmp_path: Path) -> None:
    settings = {**OFF, "optim.learning_rate": 1e-4}
    common = {"objective.high": 0.28, "value.clip": None, "value.lam": 1.0, "value.learning_rate": 2e-6}
    quick(tmp_path / "window", "t-ppo", steps=2, set={"source.window": 40}, **settings)
    plain = common | {"source.epochs": 1, "shaping": "TruncatedReward()"}
    quick(tmp_path / "plain", "ppo", steps=2, set=plain, **settings)
    for a, b in zip(metrics(tmp_path / "window"), metrics(tmp_path / "plain"), strict=True):
        assert a.pop("unfinished") == 0.0
        assert a.pop("record/bytes") > b.pop("record/bytes")  # which tokens are fresh is written down, too
        assert a == b


@pytest.mark.slow
def test_a_stopped_run_resumes_with_its_unfinished_work_bit_for_bit(tmp_path: Path) -> None:
    settings = {"set": {"source.window": 9, "source.group_size": 2}, **OFF}
    quick(tmp_path / "whole", "t-ppo", steps=3, **settings)
    quick(tmp_path / "parted", "t-ppo", steps=1, **settings)
    quick(tmp_path / "parted", "t-ppo", steps=3, resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parted", 3)
    assert any(line["unfinished"] > 0 for line in metrics(tmp_path / "whole"))


def test_the_window_left_open_is_a_third_of_the_budget() -> None:
    assert sampler(windowed(window=0)).window == 14  # of 40
    with pytest.raises(ConfigError, match="cannot be asked again within one"):
        windowed(set={"selection": "(FreshTokens(), DynamicSampling())", "source.group_size": 2})


def test_what_was_written_before_is_not_on_the_sampling_tape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unipo.policy.model.TAPE_FROM", 1)
    run = windowed(set={"source.epochs": 1, "source.minibatches": 1})
    assert run._record() is not None
    for _ in range(2):
        _, batch = run.step()
        assert batch is not None
        assert bool((batch.taped == -1).all())
