"""Pairs and ranked lists in every form they come in."""

from __future__ import annotations

from typing import Any

import pytest

from unipo.errors import DataError
from unipo.tasks.fields import Fields
from unipo.tasks.rows import to_examples
from unipo.tasks.task import Response

OPENING = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: a joke?"
SAID = (
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "a joke?"},
)


def _says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


PAIR = (Response("knock", 1.0), Response("no", 0.0))


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": OPENING + "\n\nAssistant: knock", "rejected": OPENING + "\n\nAssistant: no"},
        {"chosen": [*SAID, _says("knock")], "rejected": [*SAID, _says("no")]},
        {"prompt": list(SAID), "chosen": "knock", "rejected": "no"},
        {"prompt": list(SAID), "chosen": [_says("knock")], "rejected": [_says("no")]},
        {"prompt": list(SAID), "chosen": [*SAID, _says("knock")], "rejected": [*SAID, _says("no")]},
    ],
    ids=["transcripts", "conversations", "explicit", "explicit messages", "explicit and whole"],
)
def test_every_form_of_a_pair_reads_the_same(row: dict[str, Any]) -> None:
    example = to_examples([row], kind="preference").examples[0]
    assert example.prompt == SAID
    assert example.responses == PAIR
    assert example.answer is None


def test_a_text_prompt_may_stand_beside_whole_conversations() -> None:
    opening = [{"role": "system", "content": "s"}, {"role": "user", "content": "a joke?"}]
    row = {"prompt": "a joke?", "chosen": [*opening, _says("knock")], "rejected": [*opening, _says("no")]}
    assert to_examples([row]).examples[0].prompt == tuple(opening)
    with pytest.raises(DataError, match="does not begin with the prompt field"):
        to_examples([{**row, "prompt": "another"}])


def test_plain_prompt_and_responses_are_kept_to_the_letter() -> None:
    example = to_examples([{"question": "Q:", "chosen": " a\n", "rejected": " b"}]).examples[0]
    assert example.prompt == "Q:"
    assert example.responses == (Response(" a\n", 1.0), Response(" b", 0.0))


BAD: list[tuple[str, dict[str, Any]]] = [
    ("prompts differ", {"chosen": OPENING + "\n\nAssistant: a", "rejected": "\n\nHuman: x\n\nAssistant: b"}),
    ("identical responses", {"chosen": OPENING + "\n\nAssistant: a", "rejected": OPENING + "\n\nAssistant: a "}),
    ("empty response", {"chosen": OPENING + "\n\nAssistant:", "rejected": OPENING + "\n\nAssistant: b"}),
    ("no final assistant turn", {"chosen": OPENING, "rejected": OPENING + "\n\nAssistant: b"}),
    ("no prompt", {"chosen": "plain", "rejected": "text"}),
    ("response type", {"chosen": 3, "rejected": "text"}),
]


@pytest.mark.parametrize(("reason", "row"), BAD, ids=[reason for reason, _ in BAD])
def test_a_pair_that_is_none_stops_or_is_counted(reason: str, row: dict[str, Any]) -> None:
    good = {"chosen": OPENING + "\n\nAssistant: a", "rejected": OPENING + "\n\nAssistant: b"}
    with pytest.raises(DataError, match=r"row 2: .*bad-rows skip"):
        to_examples([good, row])
    read = to_examples([good, row, row], on_bad_row="skip")
    assert len(read.examples) == 1
    assert read.events == {reason: 2}


def test_a_transcript_can_be_a_demonstration() -> None:
    example = to_examples(
        [{"chosen": OPENING + "\n\nAssistant: knock"}], Fields(messages="chosen"), kind="demonstration"
    ).examples[0]
    assert (example.prompt, example.responses) == (SAID, (Response("knock"),))


def test_scores_are_preferences_and_ranks_count_from_the_worst() -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"]}
    scored = to_examples([{**row, "scores": [0.5, -1, 2]}]).examples[0]
    assert scored.responses == (Response("a", 0.5), Response("b", -1.0), Response("c", 2.0))
    ranked = to_examples([{**row, "ranks": [2, 3, 1]}]).examples[0]
    assert ranked.responses == (Response("a", 1.0), Response("b", 0.0), Response("c", 2.0))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"responses": ["a", "b"], "scores": [1]}, "2 responses with 1 scores"),
        ({"responses": ["a"], "scores": [1]}, "two or more"),
        ({"responses": ["a", "b"], "scores": [1, 1]}, "all scores are equal to 1"),
        ({"responses": ["a", "b"], "scores": [1, float("nan")]}, "list of finite numbers"),
        ({"responses": ["a", "b"], "scores": "12"}, "list of finite numbers"),
        ({"responses": ["a", ""], "ranks": [1, 2]}, "response 2 is empty"),
        ({"responses": ["a", "a"], "ranks": [1, 2]}, "stands twice"),
        ({"responses": "ab", "ranks": [1, 2]}, "responses must be a list of texts, it is str"),
    ],
)
def test_a_ranked_list_that_is_none_names_its_row(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=f"row 1: .*{complaint}"):
        to_examples([{"prompt": "q", **row}])


def test_a_list_needs_exactly_one_of_scores_and_ranks() -> None:
    row = {"prompt": "q", "responses": ["a", "b"]}
    for more in ({}, {"scores": [1, 2], "ranks": [2, 1]}):
        with pytest.raises(DataError, match="either scores or ranks"):
            to_examples([{**row, **more}])
