"""The reward for data without labels: it finds answers and judges nothing."""

from __future__ import annotations

import pytest

from unipo.errors import ConfigError
from unipo.rewards import Sample, Unlabelled, check_reward, resolve_reward

TABLE = [
    # text, tagged, boxed, numbers
    ("<answer> 4 </answer>", "4", None, "4"),
    ("so \\boxed{\\frac{\\sqrt{2}}{2}} or \\boxed{ 7 }", "so \\boxed{\\frac{\\sqrt{2}}{2}} or \\boxed{ 7 }", "7", "7"),
    ("\\boxed{\\frac{\\sqrt{2}}{2}}", "\\boxed{\\frac{\\sqrt{2}}{2}}", "\\frac{\\sqrt{2}}{2}", "2"),
    ("<think>\\boxed{1}</think>", None, None, None),
    ("<think>\\boxed{1}", None, None, None),
    ("\\boxed{}", "\\boxed{}", None, None),
    ("", None, None, None),
]


@pytest.mark.parametrize(("text", "tagged", "boxed", "numbers"), TABLE)
def test_what_is_found(text, tagged, boxed, numbers):
    found = [Unlabelled(find=f).answer_of(Sample("", text)) for f in ("tagged", "boxed", "numbers")]
    assert found == [tagged, boxed, numbers]


def test_everything_is_scored_zero_whatever_the_label():
    samples = [Sample("", "<answer>4</answer>", answer) for answer in ("4", "5", None)]
    scores = resolve_reward("unlabelled")(samples)
    assert scores.total == [0.0, 0.0, 0.0]
    assert scores.extracted == ["4", "4", "4"]


@pytest.mark.parametrize("spec", ["unlabelled", "unlabelled:boxed", "unlabelled:find=numbers"])
def test_it_passes_the_check_of_rewards(spec):
    assert check_reward(spec).unscored == 0


def test_an_unknown_place_is_refused():
    with pytest.raises(ConfigError, match="boxed"):
        Unlabelled(find="box")
