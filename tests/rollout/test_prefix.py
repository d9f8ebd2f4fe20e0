"""A response is continued from the middle as if it had never been interrupted."""

from __future__ import annotations

import pytest
import torch

from tests.policy.models import make
from tests.rollout.test_local_engine import ENDS, as_batch, requests
from unipo.errors import DataError
from unipo.policy.model import Policy, load_policy
from unipo.policy.spec import PolicySpec
from unipo.rollout.engine import Request, Rollout, Sampling
from unipo.rollout.local import LocalEngine
from unipo.starter import starter_path

BUDGET = Sampling(max_tokens=20)


def whole(name: str = "qwen3") -> tuple[LocalEngine, list[Request], list[list[Rollout]]]:
    engine = LocalEngine(Policy(make(name), None), 64, ENDS)
    return engine, requests(), engine.generate(requests(), BUDGET)


def cut_at(asked: list[Request], groups: list[list[Rollout]], at: int) -> list[tuple[Request, Rollout]]:
    """(continuation of each response from place `at`, the response); those shorter than that are left out."""
    return [
        (Request(request.prompt, 1, request.seed, r.tokens[:at].tolist(), first=sample), r)
        for request, group in zip(asked, groups, strict=True)
        for sample, r in enumerate(group)
        if len(r.tokens) > at
    ]


@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize("at", [1, 4, 19])
def test_a_continued_response_is_the_one_that_was_interrupted(name: str, at: int) -> None:
    engine, asked, groups = whole(name)
    parted = cut_at(asked, groups, at)
    assert parted
    rest = engine.generate([request for request, _ in parted], BUDGET)
    for (_, r), (continued,) in zip(parted, rest, strict=True):
        assert continued.tokens.tolist() == r.tokens[at:].tolist()
        assert continued.truncated == r.truncated
        torch.testing.assert_close(continued.logp, r.logp[at:], rtol=0, atol=2e-5)
        torch.testing.assert_close(continued.entropy, r.entropy[at:], rtol=0, atol=2e-5)


@pytest.mark.parametrize("rows", [1, 3])
def test_windows_put_together_are_the_whole_response(rows: int) -> None:
    """Rows with different prefixes and limits share a batch, are refilled and dropped."""
    engine, asked, groups = whole()
    engine.max_rows = rows
    open_ = [(i, s, []) for i, request in enumerate(asked) for s in range(request.n)]
    done: dict[tuple[int, int], list[int]] = {}
    while open_:
        again = [Request(asked[i].prompt, 1, asked[i].seed, tokens, 3 + s, s) for i, s, tokens in open_]
        longer = []
        for (i, s, tokens), (r,) in zip(open_, engine.generate(again, BUDGET), strict=True):
            assert len(r.tokens) <= 3 + s
            tokens = [*tokens, *r.tokens.tolist()]
            finished = not r.truncated or len(tokens) == BUDGET.max_tokens
            if finished:
                done[i, s] = tokens
            else:
                longer.append((i, s, tokens))
        open_ = longer
    for i, group in enumerate(groups):
        for s, r in enumerate(group):
            assert done[i, s] == r.tokens.tolist()


def test_log_probs_after_a_prefix_are_the_trainers() -> None:
    engine, asked, groups = whole()
    parted = cut_at(asked, groups, 4)
    others = [Request(r.prompt, 3, r.seed + 1, r.prefix) for r, _ in parted]
    drawn = engine.generate(others, BUDGET)
    assert len({tuple(r.tokens.tolist()) for r in drawn[0]}) > 1
    joined = [[Rollout(torch.cat([torch.tensor(q.prefix), r.tokens]), r.logp, r.entropy, r.truncated) for r in group] for q, group in zip(others, drawn, strict=True)]  # fmt: skip
    said = torch.cat([r.logp for g in drawn for r in g])
    batch = as_batch([Request(r.prompt, r.n) for r in others], joined)
    trainers = engine.policy.logp(batch)[batch.layout.token_position >= 4]
    torch.testing.assert_close(said, trainers, rtol=0, atol=2e-5)


def test_the_budget_counts_the_prefix_and_the_limit_only_what_is_new() -> None:
    engine, asked, groups = whole()
    request, _ = cut_at(asked, groups, 4)[0]
    engine.end_ids = torch.zeros(0, dtype=torch.int64)
    (r,) = engine.generate([request], Sampling(max_tokens=9))[0]
    assert (len(r.tokens), r.truncated) == (5, True)
    limited = Request(request.prompt, 1, 1, request.prefix, limit=2)
    (r,) = engine.generate([limited], Sampling(max_tokens=9))[0]
    assert (len(r.tokens), r.truncated) == (2, True)
    (r,) = engine.generate([Request(request.prompt, 1, 1, request.prefix, limit=50)], Sampling(max_tokens=9))[0]
    assert len(r.tokens) == 5


def test_a_prefix_that_leaves_no_room_or_has_ended_is_refused() -> None:
    engine, asked, _ = whole()
    with pytest.raises(DataError, match="a prefix of 20 tokens leaves no room"):
        engine.generate([Request(asked[0].prompt, 1, 0, [1] * 20)], BUDGET)
    with pytest.raises(DataError, match="its prefix ends with token 5"):
        engine.generate([Request(asked[0].prompt, 1, 0, [1, ENDS[0]])], BUDGET)


def test_a_stop_text_that_began_in_the_prefix_ends_the_response() -> None:
    policy = load_policy(PolicySpec(model=str(starter_path())))
    ids = policy.tokenizer.apply_chat_template(
        [{"role": "user", "content": "347+586="}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    engine, plain = LocalEngine(policy), Sampling(max_tokens=48)
    (r,) = engine.generate([Request(ids, 1, 1)], plain)[0]
    text = policy.tokenizer.decode(r.tokens[:12].tolist())
    stop = text[-6:]  # its first characters lie in the prefix below
    assert text.count(stop) == 1
    (first,) = engine.generate([Request(ids, 1, 1)], Sampling(max_tokens=48, stop=(stop,)))[0]
    prefix = first.tokens[:-1].tolist()
    (rest,) = engine.generate([Request(ids, 1, 1, prefix)], Sampling(max_tokens=48, stop=(stop,)))[0]
    assert (rest.tokens.tolist(), rest.truncated) == (first.tokens[-1:].tolist(), False)
