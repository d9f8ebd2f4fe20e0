"""Functions as rewards: how they are found and called."""

from __future__ import annotations

from pathlib import Path

import pytest

from unipo.errors import ConfigError, RewardError
from unipo.rewards import FunctionReward, Sample, load_function

FILE = Path(__file__).with_name("reward_functions.py")
HARD = Sample("pr", "text", "ans", {"difficulty": 2.0}, length=7, truncated=True)
EASY = Sample("prompt", "t", "a", {"difficulty": 0.5}, length=3)


def reward(name: str, **settings) -> FunctionReward:
    return FunctionReward(f"{FILE}:{name}", **settings)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("contains", [0.0, 0.0]),
        ("length_of_text", [4 + 7 + 1000, 1 + 3]),
        ("by_field", [2.5, 1.0]),
        ("everything", [1.0, 1.0]),
        ("batch_lengths", [4 + 2 + 3, 1 + 6 + 1]),
        ("batch_columns", [2.0, 0.5]),
    ],
)
@pytest.mark.parametrize("isolate", [True, False])
def test_a_function_gets_what_its_parameters_name(name, expected, isolate):
    scores = reward(name, isolate=isolate)([HARD, EASY])
    assert scores.total == expected
    assert scores.score == expected
    assert scores.parts == {name: expected}


@pytest.mark.parametrize(("name", "seen"), [("batch_too_few", "1 values for 2"), ("batch_scalar", "a float for 2")])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_batch_of_the_wrong_length_is_an_error_whatever_the_policy(name, seen, on_error):
    with pytest.raises(RewardError, match=seen):
        reward(name, on_error=on_error)([HARD, EASY])


def test_a_length_one_list_is_not_broadcast():
    made = FunctionReward(_one_value, isolate=False)
    assert made([HARD]).total == [1.0]
    with pytest.raises(RewardError, match="1 values for 2 samples"):
        made([HARD, EASY])


def _one_value(completions):
    return [1.0]


def test_a_hanging_batch_function_loses_the_batch():
    made = reward("batch_hangs", seconds=0.25, on_error="skip")
    scores = made([HARD, EASY])
    assert (scores.total, scores.events) == ([None, None], {"timeout": 2})
    with pytest.raises(RewardError, match="on a batch of 2; its first sample"):
        reward("batch_hangs", seconds=0.25)([HARD, EASY])


def test_columns_nobody_named_hold_none_where_a_row_lacks_them():
    def score(completions, **columns):
        return [0.0 if value is None else value for value in columns["difficulty"]]

    assert FunctionReward(score, isolate=False)([HARD, Sample("p", "t")]).total == [2.0, 0.0]


def test_no_samples_give_no_scores():
    assert reward("batch_too_few")([]).total == []
    assert reward("contains")([]).total == []


def test_arrays_and_tensors_count_as_lists():
    import torch

    made = FunctionReward(lambda completions: torch.tensor([1.0, 0.25]), isolate=False)
    assert made([HARD, EASY]).total == [1.0, 0.25]
    assert FunctionReward(lambda completion: torch.tensor(0.5), isolate=False)([HARD]).total == [0.5]


def test_trl_style_columns_are_lists_under_their_own_name():
    def trl_style(completions, answer, **kwargs):
        return [float(len(c) + len(a)) for c, a in zip(completions, answer, strict=True)]

    assert FunctionReward(trl_style, isolate=False)([HARD, EASY]).total == [7.0, 2.0]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: 1.0, "does not take the completion"),
        (lambda answer: 1.0, "does not take the completion"),
        (lambda completion, completions: 1.0, "more than once"),
        (lambda text, response: 1.0, "more than once"),
        (lambda *texts: 1.0, r"\*args"),
        (lambda completion, /: 1.0, "positional-only"),
    ],
)
def test_a_wrong_signature_is_refused_with_the_names_it_may_take(function, message):
    with pytest.raises(ConfigError, match=message) as caught:
        FunctionReward(function, isolate=False)
    assert "completion (or text, or response), prompt, answer, row, length, truncated" in str(caught.value)


def test_an_async_function_is_refused():
    async def score(completion):
        return 1.0

    with pytest.raises(ConfigError, match="async"):
        FunctionReward(score, isolate=False)


def test_a_missing_field_of_the_row_names_the_fields_there_are():
    with pytest.raises(RewardError, match=r"asks for 'difficulty'.*its fields: level"):
        reward("by_field")([Sample("p", "t", "a", {"level": 3})])
    with pytest.raises(RewardError, match="asks for 'difficulty'"):
        reward("batch_columns")([HARD, Sample("p", "t", "a")])


def test_missing_files_and_functions_suggest_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"does not exist; did you mean 'reward_functions\.py'"):
        load_function(str(FILE.with_name("reward_function.py")) + ":contains")
    with pytest.raises(ConfigError, match="did you mean 'contains'"):
        load_function(f"{FILE}:contain")
    with pytest.raises(ConfigError, match="is a int, not a function"):
        load_function(f"{FILE}:not_a_function")
    with pytest.raises(ConfigError, match=r"file\.py:function"):
        load_function("contains")
    broken = tmp_path / "broken.py"
    broken.write_text("def score(completion:\n")
    with pytest.raises(ConfigError, match=r"cannot be imported(.|\n)*SyntaxError"):
        load_function(f"{broken}:score")


def test_a_file_may_import_its_neighbours_and_call_itself_like_a_standard_module(tmp_path):
    (tmp_path / "neighbour_of_reward.py").write_text("VALUE = 4.0\n")
    (tmp_path / "numbers.py").write_text("raise RuntimeError('shadowed the standard module')\n")
    (tmp_path / "mine.py").write_text(
        "import fractions\nfrom neighbour_of_reward import VALUE\ndef score(completion):\n    return VALUE\n"
    )
    assert FunctionReward(f"{tmp_path / 'mine.py'}:score", workers=1)([EASY]).total == [4.0]


def test_a_function_object_loaded_by_path_is_found_again_by_the_worker():
    assert FunctionReward(load_function(f"{FILE}:contains"))([Sample("p", "an ans", "ans")]).total == [1.0]


def test_settings_are_checked_when_made():
    with pytest.raises(ConfigError, match="did you mean 'skip'"):
        reward("contains", on_error="skipp")
    with pytest.raises(ConfigError, match="seconds must be a number above 0"):
        reward("contains", seconds=0)
