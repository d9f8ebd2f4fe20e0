"""Prompts made harder or easier by how the policy does on them (DeepVideo-R1)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from unipo.batch import Batch
from unipo.errors import ConfigError
from unipo.layout import Layout
from unipo.parts.augmentation import DifficultyAugmentation, relative_difficulty
from unipo.parts.curriculum import Hint, Noise
from unipo.registry import get_method

RECENT = {"recent_rewards": {"recent": (0.25, 0.75)}}


def groups(*rewards: tuple[float, float], states: Any = RECENT, **columns: Any) -> Batch:
    """A prompt for each pair of rewards, with one image each."""
    n = len(rewards)
    given: dict[str, Any] = {
        "reward": torch.tensor([r for pair in rewards for r in pair], dtype=torch.float64),
        "scored": torch.ones(2 * n, dtype=torch.bool),
        "answer": [f"a{p}" for p in range(n)],
        "images": [torch.zeros(1, 3, 2, 2)] * n,
    }
    batch = Batch.of(Layout.of([1] * 2 * n, [2] * n, [1] * n), **(given | columns))
    return replace(batch, states=states)


def made(part: DifficultyAugmentation, batch: Batch) -> list[Any]:
    found = part.rewrites(batch, [f"q{p}" for p in range(batch.layout.n_prompts)])
    return [] if found is None else list(found.requests)


def test_difficulty_is_the_distance_to_the_usual_reward() -> None:
    assert relative_difficulty([0.0, 0.5, 1.0], [0.25, 0.75]) == [0.5, 0.0, -0.5]


def test_hint_and_noise_grow_with_the_distance() -> None:
    # usual reward 1/2; groups at 1/4, 3/4, 1/2, 0 and 1: distances 1/4, -1/4, 0, 1/2, -1/2 of a full 1/2
    batch = groups((0, 0.5), (0.5, 1), (0, 1), (0, 0), (1, 1))
    assert made(DifficultyAugmentation(full=0.5, noise=0.2, traces=3), batch) == [
        Hint(0, "q0\nThe answer is a0.", "hard", 3, 0.5),
        Noise(1, "easy", 0.1),
        Hint(3, "q3\nThe answer is a3.", "hard", 3, 1.0),
        Noise(4, "easy", 0.2),
    ]


def test_beyond_the_full_distance_nothing_grows() -> None:
    batch = groups((0, 0), (1, 1))
    hint, noise = made(DifficultyAugmentation(full=0.1, noise=0.3), batch)
    assert (hint.share, noise.std) == (1.0, 0.3)


def test_what_cannot_be_changed_stays() -> None:
    part = DifficultyAugmentation()
    assert made(part, groups((0, 0), (1, 1), states={})) == []  # nothing to compare with yet
    assert made(part, groups((0, 0), answer=[None])) == []
    assert made(part, groups((1, 1), images=[torch.zeros(0, 3, 1, 1)])) == []
    assert made(part, groups((0, 0), scored=torch.zeros(2, dtype=torch.bool))) == []
    assert made(replace(part, noise=0.0), groups((1, 1))) == []
    words = groups((1, 1), (0, 0))
    words = replace(words, columns={k: v for k, v in words.columns.items() if k != "images"})
    assert [type(r) for r in made(part, words)] == [Hint]


def test_only_the_last_groups_are_remembered() -> None:
    part = DifficultyAugmentation(window=3)
    batch = groups((0, 1), (1, 1), (0, 0), scored=torch.tensor([True, True, True, True, False, False]))
    assert part.remember(batch) == {"recent": [0.75, 0.5, 1.0]}
    assert part.remember(replace(batch, states={})) == {"recent": [0.5, 1.0]}


def test_the_words_of_hint_and_answer_may_be_chosen() -> None:
    part = DifficultyAugmentation(hint="{problem} [{beginning}]", answered="{answer}! {problem}")
    assert part.hinted("q", "so") == "q [so]"
    assert made(part, groups((0, 0)))[0].question == "a0! q0"
    with pytest.raises(ConfigError, match=r"hint must hold \{problem\} and \{beginning\}"):
        DifficultyAugmentation(hint="{problem}")
    with pytest.raises(ConfigError, match="full > 0"):
        DifficultyAugmentation(full=0.0)


def test_an_open_budget_is_the_runs() -> None:
    assert DifficultyAugmentation().bound_to(48).max_tokens == 48
    assert DifficultyAugmentation(max_tokens=9).bound_to(48).max_tokens == 9
    curriculum = get_method("deepvideo-r1").bound_to(48).curriculum
    assert isinstance(curriculum, DifficultyAugmentation)
    assert curriculum.max_tokens == 48
    assert curriculum.replaces
    assert not replace(curriculum, keep_original=True).replaces
