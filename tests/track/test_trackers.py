"""Trackers as the run sees them: whatever they do, the run and its directory come to no harm."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import unipo
from unipo.errors import ConfigError, MissingExtra
from unipo.track import tracker as trackers_module
from unipo.track.tracker import TRACKERS, Beginning, flat, make_tracker, register_tracker
from unipo.track.trackers import Trackers
from unipo.training.rundir import RunDir


class Listener:
    """Remembers what it was told; raises where it is asked to."""

    made: list[Listener]
    raises: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []
        type(self).made.append(self)

    def _hear(self, what: str, *details: Any) -> None:
        self.heard.append((what, *details))
        if what in type(self).raises:
            raise OSError(f"no {what} today")

    def start(self, beginning: Beginning) -> None:
        self._hear("start", beginning)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._hear("log", dict(metrics), step)

    def text(self, name: str, body: str) -> None:
        self._hear("text", name, body)

    def summary(self, values: Mapping[str, float]) -> None:
        self._hear("summary", dict(values))

    def close(self) -> None:
        self._hear("close")


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> type[Listener]:
    """A tracker class under the names "one" and "two"."""
    monkeypatch.setattr(Listener, "made", [], raising=False)
    monkeypatch.setattr(Listener, "raises", ())
    for name in ("one", "two"):
        monkeypatch.setitem(trackers_module.TRACKERS, name, Listener)
    return Listener


NOTING = """
from unipo.track.tracker import register_tracker

closed = []

class Noting:
    def start(self, beginning): pass
    def log(self, metrics, step): pass
    def text(self, name, body): pass
    def summary(self, values): pass
    def close(self): closed.append("noting")

register_tracker("noting", Noting)
"""
QUICK: dict[str, Any] = {
    "prompts": 2,
    "sampling.max_tokens": 6,
    "eval.prompts": 2,
    "log.progress": False,
    "save.every": 1,
}


def logged(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def test_a_run_tells_its_trackers_what_it_writes_down(tmp_path: Path, listener: type[Listener]) -> None:
    run = tmp_path / "run"
    result = unipo.train(steps=2, run=str(run), **QUICK, **{"log.track": ["one"]})
    (one,) = listener.made
    kinds = [what for what, *_ in one.heard]
    assert kinds == ["start", "text", "log", "log", "log", "log", "summary", "close"]
    start = one.heard[0][1]
    assert (start.run, start.after, start.config["sampling.max_tokens"]) == (run, 0, 6)
    assert one.heard[1][1:] == ("method", (run / "method.txt").read_text().rstrip("\n"))
    shown = [(step, m) for what, m, step in (h for h in one.heard if h[0] == "log") if "loss" in m]
    assert shown == [(m.pop("step"), m) for m in logged(run)]
    ends = [m["evaluation/accuracy"] for what, m, _ in (h for h in one.heard if h[0] == "log") if "loss" not in m]
    assert ends == [e["accuracy"] for e in logged(run, "evaluations")]
    assert result.after is not None
    assert one.heard[-2][1]["after/accuracy"] == pytest.approx(result.after.accuracy, abs=1e-6)


def test_a_failing_tracker_costs_the_run_nothing_and_is_told_once(
    tmp_path: Path, listener: type[Listener], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unipo.train(steps=3, run=str(tmp_path / "plain"), **QUICK)
    monkeypatch.setattr(listener, "raises", ("log", "close"))
    settings = {**QUICK, "log.progress": True}
    unipo.train(steps=3, run=str(tmp_path / "tracked"), **settings, **{"log.track": ["one"]})
    timed = ("seconds/", "speed/", "mfu/")
    plain, tracked = (
        [{k: v for k, v in m.items() if not k.startswith(timed)} for m in logged(tmp_path / name)]
        for name in ("plain", "tracked")
    )
    assert plain == tracked
    said = capfd.readouterr().err
    assert said.count("tracker one failed: OSError: no log today") == 1
    events = [e for e in logged(tmp_path / "tracked", "events") if "tracker" in e["event"]]
    assert [e["event"] for e in events] == ["tracker one failed", "tracker one failed in all"]
    assert events[0]["detail"] == "OSError: no log today"
    assert events[1]["count"] == 6  # two evaluations, three steps, and the end


def test_one_failing_tracker_does_not_silence_another(tmp_path: Path, listener: type[Listener]) -> None:
    told: list[tuple[str, str]] = []
    both = Trackers(["one", "two"], lambda name, what: told.append((name, what)))
    one, two = listener.made

    def refuse(beginning: Beginning) -> None:
        raise RuntimeError("no connection")

    one.start = refuse  # type: ignore[method-assign]
    both.begin(tmp_path, {"a": {"b": 1}}, "loss", 0)
    both.log({"x": 1.0}, 1)
    both.log({"x": 2.0}, 2)
    both.close()
    assert told == [("one", "RuntimeError: no connection")]
    assert both.failures == {"one": 1}  # what never started is not asked again
    assert [h[0] for h in two.heard] == ["start", "text", "log", "log", "close"]
    assert two.heard[0][1].config == {"a.b": 1}


def test_an_interruption_is_not_swallowed(tmp_path: Path, listener: type[Listener]) -> None:
    trackers = Trackers(["one"])

    def interrupt(metrics: Mapping[str, float], step: int) -> None:
        raise KeyboardInterrupt

    trackers.begin(tmp_path, {}, "", 0)
    listener.made[0].log = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trackers.log({}, 1)


def test_a_resumed_run_says_where_it_goes_on(tmp_path: Path, listener: type[Listener]) -> None:
    run = tmp_path / "run"
    settings = {**QUICK, "eval.before": False, "eval.after": False, "log.track": ["one"]}
    unipo.train(steps=2, run=str(run), **settings)
    unipo.train(steps=3, run=str(run), resume=True, **settings)
    first, second = listener.made
    assert [h[0] for h in second.heard] == ["start", "log", "close"] or [h[0] for h in second.heard][:2] == [
        "start",
        "log",
    ]
    assert second.heard[0][1].after == 2
    assert second.heard[1][2] == 3
    assert [h[2] for h in first.heard if h[0] == "log"] == [1, 2]


def test_only_the_first_rank_tracks(tmp_path: Path, listener: type[Listener]) -> None:
    RunDir(tmp_path / "run", False, active=False, track=["one"]).metrics(1, {"x": 1.0})
    assert listener.made == []


def test_a_plugin_may_register_the_tracker_that_the_run_names(tmp_path: Path) -> None:
    file = tmp_path / "noting_plugin.py"
    file.write_text(NOTING)
    try:
        unipo.train(steps=1, run=str(tmp_path / "run"), plugin=str(file), track="noting", **QUICK)
        assert sys.modules["unipo_plugin_noting_plugin"].closed == ["noting"]
    finally:
        trackers_module.TRACKERS.pop("noting", None)
        sys.modules.pop("unipo_plugin_noting_plugin", None)


def test_unknown_and_doubled_names_are_errors_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'tensorboard'"):
        unipo.train(steps=1, run=str(tmp_path / "run"), **{"log.track": ["tensorbord"]})
    with pytest.raises(ConfigError, match="named twice"):
        Trackers(["wandb", "wandb"])


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_missing_package_is_named_with_its_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = TRACKERS[name]
    assert isinstance(entry, tuple)
    place, package = entry
    for loaded in [package, *(m for m in sys.modules if m.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, loaded, None)
    monkeypatch.delitem(sys.modules, place.partition(":")[0], raising=False)
    if name == "tensorboard":
        monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(MissingExtra, match=rf"'{package}': pip install 'unipo\[{name}\]'"):
        make_tracker(name)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ConfigError, match="'wandb' exists already"):
        register_tracker("wandb", Listener)


def test_settings_get_dotted_names() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": {}}, "e": [1]}) == {"a.b.c": 1, "a.d": {}, "e": [1]}
