"""Prompts for one update: the stream and its pools, filters with refill, and prompts the policy rewrites."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.conftest import metrics, quick
from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.layout import Layout
from unipo.method import Method
from unipo.parts.curriculum import Curriculum, DomainWeights, Hint, Rewrite, Rewrites
from unipo.registry import get_method
from unipo.tasks.task import Example, Sample, Scores
from unipo.training.collect import Collector, Gathering, Rewritten
from unipo.training.prompts import Prompt, PromptStream
from unipo.training.rewriting import problem_of, with_problem
from unipo.training.source import Collected, part_sums

GROUP = 4


def prompts(*right: int, domain: str = "a") -> list[Prompt]:
    """One prompt for each number of right responses of four, which `Answers` gives it."""
    return [
        Prompt(Example(f"p{i}", str(r), row={"right": r, "domain": domain}, id=i), (1,)) for i, r in enumerate(right)
    ]


class Answers:
    """A source of such responses."""

    def room(self, wanted: int) -> int:
        return wanted

    def __call__(self, chosen: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Collected:
        return answered(chosen)


def answered(chosen: Sequence[Prompt]) -> Collected:
    n = len(chosen)
    score = torch.tensor([float(j < p.example.row["right"]) for p in chosen for j in range(GROUP)], dtype=torch.float64)
    batch = Batch.of(
        Layout.of([1] * n * GROUP, [GROUP] * n, [1] * n),
        score=score,
        scored=torch.ones(n * GROUP, dtype=torch.bool),
        prompt_id=torch.tensor([p.example.id for p in chosen]),
        sample_id=torch.tensor([p.draw * 1000 + j for p in chosen for j in range(GROUP)]),
        row=[dict(p.example.row) for p in chosen],
        answer=[p.example.answer for p in chosen],
    )
    return Collected(batch, Counter(sampled=n), {}, sampled_tokens=n * GROUP)


def no_rewriting(batch: Batch, chosen: Sequence[Prompt]) -> Rewritten:
    raise AssertionError("nothing here rewrites prompts")


def collector(method: Method, data: list[Prompt], wanted: int, **settings: Any) -> Collector:
    method = method.but(**{f"selection.0.{k}": v for k, v in settings.items()})
    return Collector(method, Answers(), PromptStream(data, 0, method.curriculum), wanted, no_rewriting)


def collect(made: Collector) -> Collected:
    collected, _ = made({})
    assert collected is not None
    return collected


FILTER = get_method("online-difficulty-filtering")


# -- filters with refill -----------------------------------------------------------------------------
def test_the_batch_is_always_full_and_only_of_prompts_inside_the_band() -> None:
    made = collector(FILTER, prompts(*[0, 4, 2, 1, 3] * 8), wanted=6)
    for _ in range(5):
        collected = collect(made)
        assert collected.batch.layout.n_prompts == 6
        assert {r["right"] for r in collected.batch.row} == {2}
        assert not bool(collected.batch.layout.group_constant(collected.batch.score).any())
        assert collected.events["dropped by PassRateBand"] + 6 <= collected.events["sampled"]
        assert collected.sampled_tokens == collected.events["sampled"] * GROUP


def test_rejected_prompts_come_again_in_the_next_pass() -> None:
    data = prompts(0, 4, 2, 2)
    made = collector(FILTER, data, wanted=2)
    collect(made)
    collect(made)
    assert made.stream.epoch >= 1
    assert set(made.stream.taken.values()) == {made.stream.drawn}


def test_a_dry_batch_is_filled_with_mixed_outcomes_first_and_then_with_any() -> None:
    made = collector(FILTER, prompts(0, 1, 4, 3, 0, 2), wanted=6, rounds=1)
    collected = collect(made)
    assert sorted(r["right"] for r in collected.batch.row) == [0, 0, 1, 2, 3, 4]
    assert collected.events["sampling ran dry"] == 1
    assert collected.events["filled with dropped prompts"] == 5
    # two rounds of three see each of the six once: the two mixed ones come before the solved and the failed
    made = collector(FILTER, prompts(0, 1, 4, 3, 0, 2), wanted=3, rounds=2)
    assert sorted(r["right"] for r in collect(made).batch.row) == [1, 2, 3]


def test_a_dry_batch_is_trained_on_as_it_is_or_stops_the_run() -> None:
    data = prompts(0, 4, 2, 0)
    small = collect(collector(FILTER, data, wanted=4, rounds=1, when_dry="train"))
    assert [r["right"] for r in small.batch.row] == [2]
    with pytest.raises(DataError, match=r"after 1 rounds only 1 of 4 prompts were kept by PassRateBand"):
        collect(collector(FILTER, data, wanted=4, rounds=1, when_dry="raise"))
    made = collector(FILTER, prompts(0, 4), wanted=2, rounds=3, when_dry="train")
    assert made({}) == (None, None)
    assert made.stream.drawn == 6


@pytest.mark.parametrize(("surplus", "first", "left"), [("drop", 4, 0), ("keep", 4, 2), ("use", 6, 0)])
def test_prompts_beyond_the_need(surplus: str, first: int, left: int) -> None:
    # six of eight qualify; where the first round of four has a failed one, two rounds see all eight
    data = prompts(2, 2, 2, 2, 2, 2, 0, 0)
    seed = next(s for s in range(9) if any(p.example.id > 5 for p in PromptStream(data, s).take(4)))
    method = FILTER.but(**{"selection.0.surplus": surplus})
    made = Collector(method, Answers(), PromptStream(data, seed), 4, no_rewriting)
    assert collect(made).batch.layout.n_prompts == first
    assert (0 if made.surplus is None else made.surplus.layout.n_prompts) == left
    if surplus == "keep":
        waiting = [] if made.surplus is None else made.surplus.prompt_id.tolist()
        assert collect(made).batch.prompt_id.tolist()[:2] == waiting


def test_a_filter_without_refill_takes_what_there_is() -> None:
    method = get_method("clpo").but(curriculum=None)
    made = Collector(method, Answers(), PromptStream(prompts(0, 2, 4, 3), 0), 4, no_rewriting)
    collected = collect(made)
    assert sorted(r["right"] for r in collected.batch.row) == [2, 3]
    assert made.stream.drawn == 4
    assert "sampling ran dry" not in collected.events


# -- pools -------------------------------------------------------------------------------------------
def test_without_pools_every_prompt_comes_once_per_pass() -> None:
    stream = PromptStream(prompts(*range(5)), seed=3)
    passes = [[p.example.id for p in stream.take(5)] for _ in range(3)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in passes)
    assert passes[0] != passes[1] or passes[1] != passes[2]
    again = PromptStream(prompts(*range(5)), seed=3)
    assert [p.example.id for p in again.take(15)] == [i for order in passes for i in order]
    assert [p.draw for p in again.take(2)] == [15, 16]


def mixed() -> list[Prompt]:
    data = [*prompts(0, 0, 0), *prompts(2, 2, domain="b"), *prompts(*[4] * 5, domain="c")]
    return [replace(p, example=replace(p.example, id=i)) for i, p in enumerate(data)]


def test_each_pool_has_its_own_passes_and_order() -> None:
    stream = PromptStream(mixed(), 0, DomainWeights())
    taken = [stream.take(6) for _ in range(4)]
    assert all(Counter(p.example.row["domain"] for p in t) == {"a": 2, "b": 2, "c": 2} for t in taken)
    of_b = [p.example.id for t in taken for p in t if p.example.row["domain"] == "b"]
    assert all(sorted(of_b[i : i + 2]) == [3, 4] for i in range(0, 8, 2))
    assert stream.taken == {"a": 8, "b": 8, "c": 8}
    assert len({p.draw for t in taken for p in t}) == 24
    assert [p.example.row["domain"] for p in taken[0]] != sorted(p.example.row["domain"] for p in taken[0])


def test_the_memory_decides_how_many_come_from_each_pool() -> None:
    stream = PromptStream(mixed(), 0, DomainWeights())
    memory = {"reward": {"a": 0.0, "b": 0.5, "c": 1.0}}
    # v/tau = 3.33, 1.67, 0: weights 0.817, 0.154, 0.029
    assert Counter(p.example.row["domain"] for p in stream.take(10, memory)) == {"a": 9, "b": 1}


def test_a_stream_goes_on_from_its_state() -> None:
    whole, parted = (PromptStream(mixed(), 5, DomainWeights()) for _ in range(2))
    whole.take(7)
    parted.take(7)
    fresh = PromptStream(mixed(), 5, DomainWeights())
    fresh.load(parted.state())
    assert fresh.take(9) == whole.take(9)
    with pytest.raises(DataError, match="prompt pools"):
        PromptStream(prompts(1, 2), 5).load(parted.state())


def test_a_curriculum_that_miscounts_is_named() -> None:
    @dataclass(frozen=True)
    class Short(DomainWeights):
        def counts(self, *_: Any) -> list[int]:
            return [1, 1, 1]

    with pytest.raises(ConfigError, match=r"Short\.counts gave \[1, 1, 1\] for 4 prompts of 3 pools"):
        PromptStream(mixed(), 0, Short()).take(4)


def test_a_curriculum_learns_from_dropped_prompts_too() -> None:
    method = FILTER.but(curriculum=DomainWeights(every=1))
    made = Collector(method, Answers(), PromptStream(mixed(), 0, method.curriculum), 6, no_rewriting)
    collected, sampled = made({})
    assert collected is not None
    assert sampled is not None
    assert {r["domain"] for r in sampled.row} == {"a", "b", "c"}
    assert sampled.layout.n_prompts == collected.events["sampled"]
    assert method.curriculum is not None
    assert method.curriculum.remember(sampled) == {"reward": {"a": 0.0, "b": 0.5, "c": 1.0}}
    assert {r["domain"] for r in collected.batch.row if r["right"] == 2} == {"b"}


# -- rewriting ---------------------------------------------------------------------------------------
def test_rewritten_prompts_are_groups_of_their_own_beside_their_originals() -> None:
    method = get_method("clpo")
    data = prompts(0, 2, 4)
    stream = PromptStream(data, 0, method.curriculum)

    def rewriter(batch: Batch, chosen: Sequence[Prompt]) -> Rewritten:
        assert method.curriculum is not None
        found = method.curriculum.rewrites(batch, [str(p.example.prompt) for p in chosen])
        assert found is not None
        # a rewriting of the hard prompt is half solved, one of the medium prompt gave its answer away
        outcome = {"hard": 2, "medium": 4}
        made = [
            replace(chosen[r.prompt], example=replace(chosen[r.prompt].example, row={"right": outcome[r.label]}))
            for r in found.requests
        ]
        draws = stream.reserve(len(made))
        fresh = tuple(replace(p, draw=d) for p, d in zip(made, draws, strict=True))
        origins = tuple(r.prompt for r in found.requests)
        return Rewritten(fresh, origins, tuple(r.label for r in found.requests), {"asked": len(made)}, 1.5, 99)

    collected, sampled = Collector(method, Answers(), stream, 3, rewriter)({})
    assert collected is not None
    assert sampled is None  # nothing is remembered
    batch = collected.batch
    assert batch.variant == ["", "hard"]
    assert [r["right"] for r in batch.row] == [2, 2]
    assert batch.prompt_id.tolist() == [1, 0]
    assert batch.answer == ["2", "0"]  # the answer of its original
    assert batch.layout.group_sizes.tolist() == [GROUP, GROUP]
    assert len(set(batch.sample_id.tolist())) == 2 * GROUP
    assert collected.events["dropped by MixedOutcomes"] == 3
    assert collected.events["asked"] == 2
    assert collected.sampled_tokens == 5 * GROUP + 99
    assert collected.generation_seconds == 1.5


def test_the_last_user_message_is_the_problem() -> None:
    said = [{"role": "system", "content": "s"}, {"role": "user", "content": "one"}]
    assert problem_of("plain") == "plain"
    assert with_problem("plain", "new") == "new"
    assert problem_of(said) == "one"
    assert with_problem(said, "two") == [said[0], {"role": "user", "content": "two"}]
    assert said[1]["content"] == "one"
    with pytest.raises(DataError, match="without a user message"):
        problem_of([{"role": "system", "content": "s"}])


@dataclass(frozen=True)
class Echo(Curriculum):
    """Asks about every prompt, and takes the problem with a nought added, whatever the policy says."""

    adds = ("variant",)

    def rewrites(self, batch: Batch, problems: Sequence[str]) -> Any:
        asked = tuple(Rewrite(p, text, "echo") for p, text in enumerate(problems))
        return Rewrites(asked, temperature=0.7, max_tokens=4)

    def accept(self, text: str) -> str | None:
        return "1+2="

    def formula(self) -> str:
        return "x' = 1+2="


def test_the_policy_rewrites_in_a_real_run(tmp_path: Path) -> None:
    from unipo.training.config import TrainConfig, from_dict
    from unipo.training.loop import Trainer
    from unipo.training.setup import build

    config = from_dict(TrainConfig, {"method": "grpo", "prompts": 3, "sampling": {"max_tokens": 8}})
    setup = build(config)
    setup = replace(setup, method=setup.method.but(name="echo", curriculum=Echo()))
    trainer = Trainer(setup)
    first = trainer.collect()
    assert first is not None
    assert first.batch.variant == ["", "", "", "echo", "echo", "echo"]
    assert first.batch.prompt_id.tolist()[:3] == first.batch.prompt_id.tolist()[3:]
    assert first.batch.answer[:3] == first.batch.answer[3:]
    contexts = first.batch.context.split(first.batch.layout.context_lengths.tolist())
    assert all(torch.equal(c, contexts[3]) for c in contexts[3:])
    assert first.events["prompts rewritten (echo)"] == 3
    # the same prompt is sampled apart each time
    texts = [first.batch.text[i : i + 8] for i in range(24, 48, 8)]
    assert texts[0] != texts[1]
    assert first.sampled_tokens > first.batch.layout.n_tokens
    assert trainer.stream.drawn == 3 + 3 + 3
    assert trainer.stream.epoch == 3 / len(setup.train)


@dataclass(frozen=True)
class Instead(Curriculum):
    """Makes something of the first prompt, which is learnt from in its place."""

    adds = ("variant",)
    replaces = True

    def formula(self) -> str:
        return "x' in place of x"


def test_what_is_made_of_a_prompt_may_take_its_place() -> None:
    method = get_method("grpo").but(name="instead", curriculum=Instead())
    data = prompts(1, 2, 3)
    stream = PromptStream(data, 0, method.curriculum)
    seen: list[object] = []

    def rewriter(batch: Batch, chosen: Sequence[Prompt]) -> Rewritten:
        seen.append(batch.states)
        (draw,) = stream.reserve(1)
        easier = replace(chosen[0], example=replace(chosen[0].example, row={"right": 4}), draw=draw)
        return Rewritten((easier,), (0,), ("hard",))

    collected, _ = Collector(method, Answers(), stream, 3, rewriter)({"memory": {"a": 1}})
    assert collected is not None
    assert collected.batch.variant == ["", "", "hard"]
    assert len(set(collected.batch.prompt_id.tolist())) == 3
    assert collected.batch.row[2] == {"right": 4}
    assert collected.sampled_tokens == 4 * GROUP
    assert seen == [{"memory": {"a": 1}}]


@dataclass(frozen=True)
class Helped(Curriculum):
    """Gives half of the best of three solutions to every prompt."""

    adds = ("variant",)
    replaces = True

    def rewrites(self, batch: Batch, problems: Sequence[str]) -> Any:
        asked = tuple(Hint(p, f"{text}|{batch.answer[p]}", "hard", 3, 0.5) for p, text in enumerate(problems))
        return Rewrites(asked, temperature=1.0, max_tokens=8)

    def hinted(self, problem: str, beginning: str) -> str:
        return f"{problem}&{beginning}"

    def formula(self) -> str:
        return "x + half of the best solution"


class MostNines:
    """More reward for more nines."""

    name = "nines"

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        marks: list[float | None] = [float(s.text.count("9")) for s in samples]
        return Scores(marks, marks)


def test_a_hint_is_the_beginning_of_the_best_rewarded_solution() -> None:
    from unipo.training.config import TrainConfig, from_dict
    from unipo.training.loop import Trainer
    from unipo.training.setup import build

    config = from_dict(TrainConfig, {"method": "grpo", "prompts": 4, "sampling": {"max_tokens": 8}})
    setup = build(config, reward=MostNines())
    setup = replace(setup, method=setup.method.but(name="helped", curriculum=Helped()))
    trainer = Trainer(setup)
    written: list[tuple[str, list[str]]] = []
    generate = setup.engine.generate

    def watching(requests: Any, sampling: Any, progress: Any = None) -> Any:
        groups = generate(requests, sampling, progress)
        decode = setup.policy.tokenizer.decode
        for request, group in zip(requests, groups, strict=True):
            written.append((decode(list(request.prompt)), [decode(r.tokens.tolist()) for r in group]))
        return groups

    setup.engine.generate = watching  # type: ignore[method-assign]
    first = trainer.collect()
    assert first is not None
    assert first.batch.variant == ["hard"] * 4
    solutions = [(said, texts) for said, texts in written if len(texts) == 3]
    assert len(solutions) == 4
    for (said, texts), prompt in zip(solutions, first.batch.prompt, strict=True):
        best = max(texts, key=lambda t: t.count("9"))  # the first of equals, as max does
        problem, _, hint = problem_of(prompt).partition("&")
        assert f"{problem}|" in said
        assert hint
        assert best.strip().startswith(hint)


def test_the_rewards_components_are_a_column_of_every_sampled_batch(tmp_path: Path) -> None:
    quick(tmp_path / "run", "mo-grpo", steps=1, **{"eval.before": False, "eval.after": False})
    (line,) = metrics(tmp_path / "run")
    assert {"reward/answer", "reward/format"} <= line.keys()


def test_the_memory_of_the_domains_is_in_the_checkpoint(tmp_path: Path) -> None:
    from unipo.training.checkpoint import load_state

    settings = {
        "set": {"source.group_size": 2, "curriculum.every": 1},
        "eval.before": False,
        "eval.after": False,
    }
    quick(tmp_path / "run", "dads", steps=1, **settings)
    state = load_state(tmp_path / "run" / "checkpoints" / "step-000001")["trainer"]
    kinds = state["stream"]["taken"].keys()
    assert {"add", "sub", "mul", "mod"} <= kinds
    assert {k for k, n in state["stream"]["taken"].items() if n} == set(state["states"]["domain_weights"]["reward"])
    assert sum(state["stream"]["taken"].values()) == state["stream"]["drawn"] == 4


def test_the_records_of_hapo_survive_a_restart(tmp_path: Path) -> None:
    from unipo.training.checkpoint import load_state

    def records(run: Path) -> dict[str, Any]:
        kept: dict[str, Any] = load_state(run / "checkpoints" / "step-000002")["trainer"]["states"]["history_length"]
        return kept

    settings = {"set": {"source.group_size": 4}, "eval.before": False, "eval.after": False}
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    quick(whole, "hapo", steps=2, **settings)
    quick(parted, "hapo", steps=1, **settings)
    quick(parted, "hapo", steps=2, resume=True)
    assert records(whole) == records(parted)
    assert records(whole)


def test_the_mean_of_a_component_is_over_responses_not_rounds() -> None:
    """Eight at 0.5 and two at 1.0 are 0.6, whatever the rounds; a round without the component says nothing."""
    assert part_sums([{"parts": {"a": 1.0}}, {"parts": {"a": None}}, {"parts": {"a": 0.0, "b": 2.0}}]) == {
        "a": (1.0, 2),
        "b": (2.0, 1),
    }
    batch = answered(prompts(2)).batch
    parts = [Collected(batch, Counter(), {"a": (n * value, n)}) for n, value in ((8, 0.5), (2, 1.0))]
    have = Gathering(kept=[batch], parts=[*parts, Collected(batch, Counter(), {})])
    merged = collector(FILTER, prompts(2), wanted=1)._merge(have)
    assert merged is not None
    assert merged.parts == {"a": (6.0, 10)}
