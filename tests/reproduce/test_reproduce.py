from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

import unipo.reproduce.run as runs
from unipo.compare.code import code_state
from unipo.compare.outcome import Outcome, Point
from unipo.errors import ConfigError
from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import NOT_SHOWN, REVERSED, SHOWN, STARTER, point_name, verdict, with_settings
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.rigged import Ways
from unipo.reproduce.run import estimate, judged, reproduce, started
from unipo.reproduce.shelf import as_stated, files, find, kept, listing, load, older, result_path, shelf
from unipo.reproduce.tasks import mixture_task
from unipo.tasks.task import Sample

SMALL = Reproduction(
    method="grpo",
    claim="It is better.",
    arms={"a": "grpo", "b": "reinforce"},
    budget="2 steps",
    seeds=2,
    responses=8,
    points=0,
    train={"sampling": {"max_tokens": 10}, "eval": {"prompts": 4}},
)


def quiet(text: str) -> None:
    """Progress that nobody reads."""


def outcome(arm: str, seed: int, final: float, **measures: float) -> Outcome:
    points = (Point(0, 0, 0.0, 0.5), Point(2, 200, 1.0, final))
    return Outcome(arm, "scratchpad", seed, points, final, final / 2, {"tokens": 200.0}, measures)


# -- the rule ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("low", "high", "higher", "expected"),
    [
        (0.01, 0.05, True, SHOWN),
        (-0.01, 0.05, True, NOT_SHOWN),
        (0.0, 0.05, True, NOT_SHOWN),  # an interval that touches 0 includes it
        (-0.05, -0.01, True, REVERSED),
        (-0.05, -0.01, False, SHOWN),
        (0.01, 0.05, False, REVERSED),
        (-0.05, 0.0, False, NOT_SHOWN),
        (0.0, 0.0, True, NOT_SHOWN),
    ],
)
def test_the_verdict_follows_from_the_interval(low: float, high: float, higher: bool, expected: str) -> None:
    assert verdict(low, high, higher) == expected


def test_the_difference_is_paired_by_seed() -> None:
    # Seeds differ by 0.3, arms by 0.02 to 0.04 at every seed: unpaired nothing could be said.
    levels = (0.3, 0.4, 0.5, 0.6)
    gaps = (0.02, 0.03, 0.03, 0.04)
    outcomes = [outcome("b", i, x) for i, x in enumerate(levels)]
    outcomes += [outcome("a", i, x + g) for i, (x, g) in reversed(list(enumerate(zip(levels, gaps, strict=True))))]
    found = judged(SMALL, outcomes)
    assert found["verdict"] == SHOWN
    (difference,) = found["metrics"][0]["differences"].values()
    assert difference["values"] == pytest.approx(gaps)
    assert difference["value"] == pytest.approx(0.03)
    assert found["metrics"][0]["arms"]["b"]["value"] == pytest.approx(0.45)
    swapped = judged(replace(SMALL, arms={"b": "reinforce", "a": "grpo"}), outcomes)
    assert swapped["verdict"] == REVERSED


def test_the_first_metric_decides_by_its_own_direction() -> None:
    outcomes = [outcome("a", i, 0.9, length=10.0 + i) for i in range(5)]
    outcomes += [outcome("b", i, 0.5, length=5.0 + i) for i in range(5)]
    length = Metric("length", "length", higher=False, kind="number")
    assert judged(replace(SMALL, metrics=(length,)), outcomes)["verdict"] == REVERSED
    assert judged(replace(SMALL, metrics=(replace(length, higher=True), length)), outcomes)["verdict"] == SHOWN


def test_an_estimate_by_hand() -> None:
    found = estimate([0.0, 3.0, 6.0])
    assert (found.low, found.value, found.high) == (0.0, 3.0, 6.0)


# -- what is stated ------------------------------------------------------------------------------
def test_what_states_too_little_is_refused() -> None:
    for changes, complaint in (
        ({"arms": {"a": "grpo"}}, "two arms"),
        ({"claim": " "}, "states a claim"),
        ({"metrics": ()}, "a metric"),
        ({"seeds": 1}, "two seeds"),
        ({"search": {"lr": ()}}, "without gaps"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            replace(SMALL, **changes)  # type: ignore[arg-type]


def test_the_search_is_every_combination_for_every_arm() -> None:
    stated = replace(SMALL, search={"lr": (1e-4, 2e-4), "source.group_size": (4, 8)})
    points = stated.points_of_search()
    assert len(points) == 4
    assert points[1] == {"lr": 1e-4, "source.group_size": 8}
    arm = with_settings(stated.parsed()["a"], points[1])
    assert (arm.optim, arm.set) == ({"learning_rate": 1e-4}, {"source.group_size": 8})
    assert point_name("a", points[1]) == "a lr=0.0001 source.group_size=8"
    assert replace(SMALL, search={}).points_of_search() == [{}]


def test_all_arms_share_the_shipped_models_settings(tmp_path: Path) -> None:
    (tmp_path / "stated.py").write_text("")
    plan = SMALL.plan(tmp_path / "stated.py", tuple(SMALL.parsed().values()), (0,))
    configs = [plan.config(r, tmp_path) for r in plan.runs]
    assert all(
        c.optim.weight_decay == 0.0 and c.optim.learning_rate == STARTER["optim"]["learning_rate"] for c in configs
    )
    assert all(c.sampling.max_tokens == 10 for c in configs)


# -- runs ----------------------------------------------------------------------------------------
STATED = """
from pathlib import Path
from unipo.compare.outcome import lines
from unipo.reproduce import Metric, Reproduction

def measure(run):
    return {"longest": max(m["length/max"] for m in lines(run, "metrics"))}

REPRODUCTION = Reproduction(
    method="grpo", claim="It writes more.", arms={"a": "grpo", "b": "reinforce"}, budget="2 steps", seeds=2, responses=8,
    points=0, train={"sampling": {"max_tokens": 10}, "eval": {"prompts": 4}}, search={"lr": (1e-5, 1e-4)},
    metrics=(Metric("longest", "longest response", kind="number"),), measure=measure,
)
"""


@pytest.fixture
def stated(tmp_path: Path) -> Path:
    file = tmp_path / "stated_for_runs.py"
    file.write_text(STATED)
    return file


@pytest.mark.slow
def test_a_record_says_everything_that_was_done(stated: Path, tmp_path: Path) -> None:
    record, outcomes = reproduce(load(stated), stated, tmp_path / "runs", 1, quiet)
    assert json.loads(json.dumps(record)) == record
    assert record["seeds"] == [0, 1]
    assert len(outcomes) == 4
    search = record["search"]
    assert search["grid"] == {"lr": [1e-5, 1e-4]}
    for arm in ("a", "b"):
        assert [row["set"] for row in search["tried"][arm]] == [{"lr": 1e-5}, {"lr": 1e-4}]
        best = max(search["tried"][arm], key=lambda row: row["value"])
        assert search["chosen"][arm] == best["set"]
        assert record["arms"][arm]["optim"] == {"learning_rate": best["set"]["lr"]}
        assert [run["seed"] for run in record["curves"][arm]] == [0, 1]
        assert [p[0] for p in record["curves"][arm][0]["points"]] == [0, 2]
    (metric,) = record["metrics"]
    assert metric["arms"]["a"]["values"] == [run["measures"]["longest"] for run in record["curves"]["a"]]
    assert record["verdict"] in (SHOWN, NOT_SHOWN, REVERSED)
    assert {"unipo", "python", "torch", "transformers", "commit"} == set(record["versions"])
    assert record["code"] == search["code"] == [code_state()]


@pytest.mark.slow
def test_seeds_of_the_search_are_not_those_of_the_result(stated: Path, tmp_path: Path) -> None:
    record, _ = reproduce(load(stated), stated, tmp_path / "runs", 1, quiet)
    assert not set(record["search"]["seeds"]) & set(record["seeds"])


@pytest.mark.slow
def test_a_finished_reproduction_is_read_and_not_run_again(stated: Path, tmp_path: Path) -> None:
    first, _ = reproduce(load(stated), stated, tmp_path / "runs", 1, quiet)
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("outcome.json")}
    again, _ = reproduce(load(stated), stated, tmp_path / "runs", 1, quiet)
    assert again == first
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("outcome.json")}
    assert len(times) == 8


def test_a_failed_run_leaves_no_verdict() -> None:
    with pytest.raises(runs.TrainingError, match="no verdict; a on t, seed 0: nan"):
        runs._whole([], {"a on t, seed 0": "nan"})


STARTED = """
from pathlib import Path
from unipo.reproduce import Metric, Reproduction
from unipo.starter.mnns import save_mnns_model

def start(folder, quick=False):
    save_mnns_model(folder, hidden=8 if quick else 16, digits=2, largest=2)

def width(run):
    import json, yaml
    model = yaml.safe_load((run / "config.yaml").read_text())["policy"]["model"]
    return {"width": float(json.loads((Path(model) / "config.json").read_text())["n_embd"])}

REPRODUCTION = Reproduction(
    method="cot2-csft", claim="It is taught.", arms={"a": "cot2-csft", "b": "cot2-csft[source.traces=1]"},
    budget="2 steps", seeds=2, responses=4, points=0, task="mnns?digits=2&largest=2", train={"eval": {"prompts": 4}},
    metrics=(Metric("width", "width of the model", kind="number"),), measure=width, start=start,
)
"""


def test_all_runs_start_from_the_model_that_is_made_for_them_once(tmp_path: Path) -> None:
    file = tmp_path / "stated_with_a_start.py"
    file.write_text(STARTED)
    stated = load(file)
    for folder, asked, width in ((tmp_path / "runs", stated, 16.0), (tmp_path / "quick", stated.quick(), 8.0)):
        record, _ = reproduce(asked, file, folder, 1, quiet)
        assert {v for arm in record["metrics"][0]["arms"].values() for v in arm["values"]} == {width}
        assert "policy" not in record["train"]  # where this machine keeps the model is no part of the result
    made = (tmp_path / "runs" / "model" / "config.json").stat().st_mtime_ns
    reproduce(stated, file, tmp_path / "runs", 1, quiet)
    assert (tmp_path / "runs" / "model" / "config.json").stat().st_mtime_ns == made


# -- the shelf -----------------------------------------------------------------------------------
SLUGS = [p.stem for p in files(shelf())]


def test_the_repository_has_the_systems_whose_claims_the_shipped_model_can_show() -> None:
    wanted = {"rloo", "dr-grpo", "dapo", "gspo", "cispo", "cepo", "rlsd", "grpo", "reinforce-plus-plus"}
    assert wanted <= set(SLUGS)


@pytest.mark.parametrize("slug", SLUGS)
def test_every_reproduction_is_one_that_can_run_and_is_kept(slug: str) -> None:
    from unipo.compare.plan import check
    from unipo.registry import get_method

    file = find(slug)
    found = load(file)
    assert get_method(found.method).name == found.method
    assert found.seeds >= 5
    for point in found.points_of_search():
        arms = tuple(with_settings(a, point) for a in found.parsed().values())
        check(found.plan(file, arms, tuple(range(found.seeds))))


@pytest.mark.parametrize("record", kept(shelf()), ids=lambda record: str(record["slug"]))
def test_a_page_says_of_a_verdict_whether_the_experiment_is_stated_otherwise_now(record: dict[str, Any]) -> None:
    from unipo.docs import OLDER, index_page, method_page
    from unipo.registry import catalogue

    known, outdated = catalogue(), older(shelf())
    page = method_page(known[record["method"]], known, [record], outdated)
    assert f"Verdict: **{record['verdict']}**" in page
    current = as_stated(record, load(find(record["slug"])))
    assert (record["slug"] in outdated) == (OLDER in page) == (OLDER in index_page(known, [record], outdated))
    assert current == (OLDER not in page)
    page = method_page(known[record["method"]], known, [record], frozenset({record["slug"]}))
    assert page.count(OLDER) == 1 + page.count(f"Measured (`{record['slug']}`")  # the verdict, and what it loses


def test_a_result_whose_statement_is_gone_is_an_older_one(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "gone.json").write_text(json.dumps({"slug": "gone"}))
    assert older(tmp_path) == {"gone"}


@pytest.mark.slow
@pytest.mark.parametrize("slug", SLUGS)
def test_every_reproduction_runs(slug: str, tmp_path: Path) -> None:
    file = find(slug)
    record, _ = reproduce(
        replace(load(file).quick(), search={}), file, tmp_path, 1, quiet
    )  # the search has tests of its own
    for row in record["metrics"]:
        assert set(row["arms"]) == set(record["arms"])


def test_a_listing_shows_verdicts_where_there_are_any(stated: Path, tmp_path: Path) -> None:
    (row,) = listing(tmp_path)
    assert (row["slug"], row["verdict"], row["date"], row["seeds"]) == ("stated_for_runs", None, None, 2)
    path = result_path(stated)
    path.parent.mkdir()
    now = load(stated)
    record = {
        "verdict": SHOWN, "date": "2026-11-21", "seeds": [0, 1], "claim": now.claim, "task": now.task,
        "budget": {"unit": "steps", "amount": 2.0}, "responses": now.responses, "points": now.points,
        "arms": {name: {"spelling": text} for name, text in now.arms.items()},
        "metrics": [{"name": m.name, "higher": m.higher} for m in now.metrics],
        "train": now.settings(), "start": "the shipped model",
        "search": {"grid": {"lr": [1e-5, 1e-4]}, "select": "final", "seeds": [1000]},
    }  # fmt: skip
    search = record["search"]
    for changes, current in (
        ({}, True),
        ({"claim": "It writes less."}, False),
        ({"budget": {"unit": "steps", "amount": 3.0}}, False),
        ({"seeds": [0]}, False),
        ({"arms": {"other": {"spelling": "grpo"}}}, False),
        ({"arms": dict(reversed(record["arms"].items()))}, False),  # the first is the system, the second the baseline
        ({"search": {**search, "grid": {"lr": [1.0]}}}, False),
        ({"search": {**search, "select": "area"}}, False),
        ({"search": {**search, "seeds": [1000, 1001]}}, False),
        ({"train": {**now.settings(), "eval": {"prompts": 512}}}, False),
        ({"start": "the shipped model after a lesson"}, False),
    ):
        path.write_text(json.dumps(record | changes))
        (row,) = listing(tmp_path)
        assert (row["verdict"], row["date"], row["current"]) == (SHOWN, "2026-11-21", current), changes


def test_an_installed_package_says_to_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unipo.__file__", str(tmp_path / "site-packages" / "unipo" / "__init__.py"))
    with pytest.raises(ConfigError, match="clone the repository"):
        shelf()


def test_a_file_without_a_statement_is_named(tmp_path: Path) -> None:
    (tmp_path / "states_nothing.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="states no REPRODUCTION"):
        load(tmp_path / "states_nothing.py")


# -- the rigged task -----------------------------------------------------------------------------
def test_a_mixture_pays_as_its_rows_say() -> None:
    task = mixture_task(solved=0.5, impossible=0.25, size=400, heldout=8)
    pays = [e.row["pays"] for e in task.train]
    assert pays.count("always") == pytest.approx(200, abs=40)
    assert pays.count("never") == pytest.approx(100, abs=40)
    assert {e.row["pays"] for e in task.heldout} == {"if right"}
    assert task.reward is not None

    def score(how: str, text: str) -> Any:
        assert task.reward is not None
        return task.reward([Sample("1+1=", text, "2", {"pays": how})]).total[0]

    right, wrong = "<think>1+1=2</think>2", "<think>1+1=3</think>3"
    assert [score("always", right), score("always", wrong)] == [1.0, 1.0]
    assert [score("never", right), score("never", wrong)] == [0.0, 0.0]
    assert [score("if right", right), score("if right", wrong)] == [1.0, 0.0]
    with pytest.raises(ConfigError, match="something to learn"):
        mixture_task(solved=0.5, impossible=0.5)


# -- what is taught before, and pay by chance -------------------------------------------------------
def test_a_rigged_task_pays_each_way_as_often_as_its_kind_of_question_says() -> None:
    ways = Ways(
        right={"easy": {"S": 0.8, "L": 1.0}, "hard": {"S": 0.1, "L": 0.6}}, digits={"S": 2, "L": 6}, first={"S": 1}
    )
    task = ways.task(size=300, heldout=300)
    assert task.reward is not None
    assert not {e.row["question"] for e in task.train} & {e.row["question"] for e in task.heldout}
    rng = Random(0)
    for kind, letter, rate in (("easy", "S", 0.8), ("easy", "L", 1.0), ("hard", "S", 0.1), ("hard", "L", 0.6)):
        rows = [e.row for e in (*task.train, *task.heldout) if e.row["question"].startswith(kind)]
        texts = [letter + "".join(rng.choices("0123456789", k=ways.digits[letter])) for _ in rows]
        samples = [Sample("", text, None, row) for text, row in zip(texts, rows, strict=True)]
        found = task.reward(samples).score
        assert sum(float(x or 0) for x in found) / len(found) == pytest.approx(rate, abs=0.1)
        assert task.reward(samples).score == found
    for text in ("", "S", "S123", "X12", "12", "L12"):
        assert task.reward([Sample("", text, None, {"question": "easy a"})]).total == [0.0]


def test_a_lesson_is_learnt_and_taught_once(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    def write(rng: Random) -> tuple[str, str]:
        return f"say {rng.choice('abc')}", "Q7"

    lesson = Lesson(write, steps=20, rows=4)
    model = tmp_path / "model"
    told: list[str] = []
    started(replace(SMALL, start=lesson), model, told.append)
    before = {p.name: p.stat().st_mtime_ns for p in model.iterdir()}
    started(replace(SMALL, start=lesson), model, told.append)
    assert {p.name: p.stat().st_mtime_ns for p in model.iterdir()} == before
    assert len(told) == 1
    assert "20 steps of imitating 4 demonstrations" in told[0]
    ids, labels = next(lesson.batches(AutoTokenizer.from_pretrained(model)))
    from transformers import AutoModelForCausalLM

    loss = AutoModelForCausalLM.from_pretrained(model)(input_ids=ids, labels=labels).loss
    assert loss.item() < 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_all_runs_start_from_the_taught_model(tmp_path: Path) -> None:
    assert started(SMALL, tmp_path / "model", quiet) is SMALL
    stated = started(replace(SMALL, start=Lesson(lambda rng: ("a", "b"), steps=1, rows=1)), tmp_path / "model", quiet)
    (tmp_path / "stated.py").write_text("")
    plan = stated.plan(tmp_path / "stated.py", tuple(stated.parsed().values()), (0,))
    assert {plan.config(r, tmp_path).policy.model for r in plan.runs} == {str(tmp_path / "model")}
