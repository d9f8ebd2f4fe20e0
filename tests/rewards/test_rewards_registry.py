"""Sums, gates, spec strings and the public checker."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from unipo.errors import ConfigError, RewardError
from unipo.rewards import (
    BUILTIN,
    Cosine,
    ExactMatch,
    Format,
    FunctionReward,
    Gate,
    KimiLength,
    NumberMatch,
    Repetition,
    Sample,
    Scores,
    SoftOverlong,
    WeightedSum,
    check_reward,
    resolve_reward,
)
from unipo.rewards.registry import split_spec

FILE = Path(__file__).with_name("reward_functions.py")
RIGHT = Sample("p", "<think>\nw\n</think>\n<answer>\n4\n</answer>", "4", length=90)
PLAIN = Sample("p", "4", "4", length=10)
WRONG = Sample("p", "<think>\nw\n</think>\n<answer>\n5\n</answer>", "4", length=10)
NO_GOLD = Sample("p", "4", None, length=10)


def test_a_sum_weighs_its_terms_and_reports_them_unweighted():
    made = WeightedSum((NumberMatch(), Format("r1"), SoftOverlong(100, 20)), (0.9, 0.1, 1.0))
    scores = made([RIGHT, PLAIN, WRONG])
    # 0.9 + 0.1 - 0.5;  0.9;  0.1
    assert scores.total == pytest.approx([0.5, 0.9, 0.1])
    assert scores.score == [1.0, 1.0, 0.0]
    assert scores.parts == {"numbers": [1, 1, 0], "format:r1": [1, 0, 1], "overlong": [-0.5, 0, 0]}
    assert scores.extracted == ["4", "4", "5"]


def test_main_chooses_the_score():
    assert WeightedSum((NumberMatch(), Format("r1")), main="format:r1")([PLAIN]).score == [0.0]


def test_a_missing_part_drops_the_sample_or_is_ignored():
    terms = (NumberMatch(), Format("r1"))
    dropped = WeightedSum(terms)([NO_GOLD, PLAIN])
    assert dropped.total == [None, 1.0]
    assert dropped.events == {"numbers/no_answer": 1}
    assert WeightedSum(terms, missing="ignore")([NO_GOLD, PLAIN]).total == [0.0, 1.0]


def test_sums_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="both called 'numbers'"):
        WeightedSum((NumberMatch(), NumberMatch()))
    with pytest.raises(ConfigError, match="2 rewards"):
        WeightedSum((NumberMatch(), ExactMatch()), (1.0,))
    with pytest.raises(ConfigError, match="did you mean 'exact'"):
        WeightedSum((NumberMatch(), ExactMatch()), main="exakt")
    with pytest.raises(ConfigError, match="finite"):
        WeightedSum((NumberMatch(),), (float("nan"),))
    with pytest.raises(ConfigError, match="at least one"):
        WeightedSum(())


def test_subtracting_a_penalty_is_refused_because_it_would_pay():
    with pytest.raises(ConfigError, match=r"Write \+ 0\.5\*overlong"):
        resolve_reward("numbers - 0.5*overlong:100,20")


def test_a_term_that_returns_too_few_scores_is_an_error():
    class TooFew:
        name = "too_few"

        def __call__(self, samples):
            return Scores([1.0], [1.0])

    with pytest.raises(RewardError, match="returned 1 entries in total for 2 samples"):
        WeightedSum((NumberMatch(), TooFew()))([PLAIN, RIGHT])


def test_a_gate_pays_the_task_only_in_form_and_leaves_its_score_alone():
    scores = Gate(NumberMatch(), Format("r1"), otherwise=-0.5)([RIGHT, PLAIN, WRONG, NO_GOLD])
    assert scores.total == [1.0, -0.5, 0.0, None]
    assert scores.score == [1.0, 1.0, 0.0, None]
    assert scores.parts["format:r1"] == [1.0, 0.0, 1.0, 0.0]
    assert scores.events == {"numbers/no_answer": 1}


@pytest.mark.parametrize(
    ("spec", "terms"),
    [
        ("maths", [(1.0, "maths")]),
        ("0.9*maths+0.1*format:r1", [(0.9, "maths"), (0.1, "format:r1")]),
        (" 0.9 * maths  +  .1*format:r1 ", [(0.9, "maths"), (0.1, "format:r1")]),
        ("maths - 0.01*my-file.py:words", [(1.0, "maths"), (-0.01, "my-file.py:words")]),
        ("maths-0.5*a-b.py:f", [(1.0, "maths"), (-0.5, "a-b.py:f")]),
        ("-2*exact", [(-2.0, "exact")]),
        ("1e-3*maths+2e+1*exact", [(0.001, "maths"), (20.0, "exact")]),
        ("repetition:n=3,penalty=-1.0 + maths", [(1.0, "repetition:n=3,penalty=-1.0"), (1.0, "maths")]),
        ("my-rewards.py:score", [(1.0, "my-rewards.py:score")]),
    ],
)
def test_the_grammar_of_specs(spec, terms):
    assert split_spec(spec) == terms


@pytest.mark.parametrize("spec", ["", "maths +", "+ + maths", "maths + + exact"])
def test_an_empty_term_is_refused(spec):
    with pytest.raises(ConfigError, match="empty term"):
        resolve_reward(spec)


def test_names_become_rewards_with_their_settings():
    assert resolve_reward("exact:casefold=true") == ExactMatch(casefold=True)
    assert resolve_reward("numbers:hash,tolerance=0.01") == NumberMatch("hash", 0.01)
    assert resolve_reward("format") == Format("r1")
    assert resolve_reward("overlong:100,20") == SoftOverlong(100, 20)
    assert resolve_reward("repetition:n=4,split=characters") == Repetition(4, split="characters")
    assert resolve_reward("cosine:numbers,100") == Cosine(NumberMatch(), 100)
    assert resolve_reward("kimi:reward=numbers,weight=0.5,group=problem") == KimiLength(NumberMatch(), 0.5, "problem")
    assert resolve_reward("gate:numbers,format:r1,-0.5") == Gate(NumberMatch(), Format("r1"), -0.5)
    assert resolve_reward("0.9*numbers + 0.1*format:r1") == WeightedSum((NumberMatch(), Format("r1")), (0.9, 0.1))
    assert resolve_reward("format:tags,name=7").name == "7"


def test_maths_takes_its_settings_too():
    pytest.importorskip("math_verify")
    assert resolve_reward("maths:require_box=true").require_box


def test_functions_objects_lists_and_dicts_become_rewards():
    def score(completion):
        return 1.0

    exact = ExactMatch()
    assert resolve_reward(exact) is exact
    assert resolve_reward(["exact", ("format:r1", 0.5)]) == WeightedSum((ExactMatch(), Format("r1")), (1.0, 0.5))
    assert resolve_reward({"exact": 1.0, "format:r1": 0.5}) == WeightedSum((ExactMatch(), Format("r1")), (1.0, 0.5))
    assert resolve_reward(["exact"]) == exact
    mixed = resolve_reward([FunctionReward(score, isolate=False), "exact"], main="exact")
    assert mixed([PLAIN]).total == [2.0]
    by_path = resolve_reward(f"{FILE}:contains + 0.5*exact")
    assert by_path([PLAIN]).total == [1.5]


def test_a_reward_object_in_a_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "made.py"
    path.write_text("from unipo.rewards import ExactMatch\nmine = ExactMatch(casefold=True, name='mine')\n")
    assert resolve_reward(f"{path}:mine") == ExactMatch(casefold=True, name="mine")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("math", "did you mean 'maths'"),
        ("overlong", "needs limit and cache"),
        ("overlong:limit=100,cach=20", "did you mean 'cache'"),
        ("overlong:100,20,name,30", "needs its key"),
        ("numbers:where=hash,where=last", "given twice"),
        ("format:r2", "did you mean 'r1'"),
        ("cosine:mats,100", "did you mean 'maths'"),
        ("overlong:abc,20", "limit='abc' is not of the kind int"),
        ("maths:require_box=yes", "require_box='yes' is not of the kind bool"),
        ("cosine:numbers,100,right=1", "needs its key|make this reward in Python"),
        (3, "a reward is a name"),
        ([], "empty list"),
        (ExactMatch, "ExactMatch is a class"),
    ],
)
def test_mistakes_in_specs_say_what_to_do(spec, message):
    with pytest.raises(ConfigError, match=message):
        resolve_reward(spec)


def test_every_builtin_has_a_summary():
    assert all(builtin.summary for builtin in BUILTIN.values())


@pytest.mark.parametrize(
    "spec",
    [
        "exact",
        "numbers",
        "format:r1",
        "format:tags",
        "overlong:100,20",
        "repetition",
        "cosine:numbers,100",
        "kimi:numbers",
        "gate:numbers,format:r1",
        "numbers + 0.1*format:think",
    ],
)
def test_every_cheap_builtin_passes_the_public_check(spec):
    report = check_reward(spec)
    assert len(report.passed) == 8
    assert report.samples == 8
    assert "ok" in str(report)


def test_maths_passes_the_public_check():
    pytest.importorskip("math_verify")
    assert check_reward("maths:workers=1,seconds=30").unscored == 1


def test_the_check_finds_what_is_wrong():
    def needs_answer(completion, answer):
        return float(answer in completion)

    def unstable(completion, state=[]):  # noqa: B006  the point of the test
        state.append(1)
        return len(state)

    def first_in_line(completions):
        return [float(i == 0) for i in range(len(completions))]

    def fails_when_empty(text):
        return 1.0 / len(text)

    for function, message in (
        (needs_answer, "'no answer'"),
        (unstable, "other numbers when called again"),
        (first_in_line, "other numbers in another order"),
        (fails_when_empty, "'an empty completion'"),
    ):
        with pytest.raises(RewardError, match=message):
            check_reward(FunctionReward(function, isolate=False))
    with pytest.raises(RewardError, match="'difficulty'"):
        check_reward(f"{FILE}:by_field")
    assert check_reward(f"{FILE}:by_field", [Sample("p", "t", "a", {"difficulty": 1.0}, 1)]).samples == 5


def test_importing_rewards_stays_light():
    code = (
        "import sys, unipo.rewards; print([m for m in ('torch', 'sympy', 'math_verify', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
