"""Which field is what: found when there is one candidate, asked for when there are two."""

from __future__ import annotations

from typing import Any

import pytest

from unipo.errors import ConfigError, DataError
from unipo.tasks.fields import CANDIDATES, Fields
from unipo.tasks.rows import to_examples
from unipo.tasks.task import Response


@pytest.mark.parametrize("prompt", CANDIDATES["prompt"])
@pytest.mark.parametrize("answer", CANDIDATES["answer"])
def test_every_common_pair_of_names_is_found(prompt: str, answer: str) -> None:
    read = to_examples([{prompt: "1 + 1?", answer: "2", "other": 0}])
    assert read.examples[0].prompt == "1 + 1?"
    assert read.examples[0].answer == "2"
    assert (read.fields.prompt, read.fields.answer) == (prompt, answer)
    assert prompt in read.description


def test_the_whole_row_and_its_place_travel_with_the_example() -> None:
    rows = [{"question": "a", "answer": "1", "level": 3}, {"question": "b", "answer": "2", "level": 4}]
    second = to_examples(rows, first_id=10).examples[1]
    assert second.row == rows[1]
    assert second.id == 11


def test_two_candidates_are_an_error_that_lists_the_fields_and_names_the_option() -> None:
    with pytest.raises(
        DataError, match=r"row 1: prompt and question .* --data.fields.prompt NAME.*fields question, prompt"
    ):
        to_examples([{"question": "a", "prompt": "b", "answer": "1"}])
    with pytest.raises(DataError, match=r"answer and solution .* --data.fields.answer NAME"):
        to_examples([{"problem": "a", "solution": "b", "answer": "1"}])
    with pytest.raises(DataError, match="prompt and messages could each be the prompt"):
        to_examples([{"prompt": "a", "messages": [{"role": "user", "content": "a"}]}])


def test_a_given_name_settles_it_and_an_empty_one_means_none() -> None:
    row = {"problem": "p", "solution": "long", "answer": "1"}
    assert to_examples([row], Fields(answer="answer")).examples[0].answer == "1"
    assert to_examples([row], Fields(answer="")).examples[0].answer is None
    both = {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}
    assert to_examples([both], Fields(prompt="prompt")).examples[0].prompt == "a"
    assert to_examples([both], Fields(messages="messages")).examples[0].prompt == ({"role": "user", "content": "b"},)


def test_a_role_the_kind_has_no_use_for_cannot_be_ambiguous() -> None:
    row = {"problem": "p", "solution": "long", "answer": "1"}
    assert to_examples([row], kind="prompt").examples[0].answer is None


def test_a_missing_role_is_an_error_that_names_the_option() -> None:
    with pytest.raises(
        DataError, match=r"needs a prompt.*--data.fields.prompt NAME; the rows have the fields text, answer"
    ):
        to_examples([{"text": "a", "answer": "1"}])
    with pytest.raises(DataError, match=r"needs an answer.*--data.fields.answer NAME"):
        to_examples([{"prompt": "a"}], kind="answer")
    with pytest.raises(DataError, match=r"two sides.*--data.fields.rejected NAME"):
        to_examples([{"prompt": "a", "chosen": "b"}])
    with pytest.raises(DataError, match="no field 'qestion' for the prompt"):
        to_examples([{"question": "a"}], Fields(prompt="qestion"))


def test_a_column_of_nulls_is_no_candidate() -> None:
    rows = [{"prompt": None, "question": "a", "answer": "1"}, {"prompt": None, "question": "b", "answer": "2"}]
    assert [e.prompt for e in to_examples(rows).examples] == ["a", "b"]


@pytest.mark.parametrize(("value", "text"), [(42, "42"), (0.5, "0.5"), (True, "True"), ("x", "x")])
def test_numbers_and_bools_become_text(value: Any, text: str) -> None:
    assert to_examples([{"question": "q", "answer": value}], kind="answer").examples[0].answer == text


@pytest.mark.parametrize("value", [["1"], {"value": 1}, float("nan"), float("inf")])
def test_an_answer_of_another_type_names_its_row(value: Any) -> None:
    rows = [{"question": "a", "answer": "1"}, {"question": "b", "answer": value}]
    with pytest.raises(DataError, match="row 2: the answer in 'answer' must be text or a number"):
        to_examples(rows)


@pytest.mark.parametrize("value", [None, "", " "])
def test_an_answer_may_be_missing_only_where_none_is_needed(value: Any) -> None:
    rows = [{"question": "a", "answer": "1"}, {"question": "b", "answer": value}]
    assert to_examples(rows).examples[1].answer == value
    with pytest.raises(DataError, match="row 2: the answer in 'answer' is missing or empty"):
        to_examples(rows, kind="answer")


def test_gsm8k_answers_are_the_part_after_the_mark_and_the_full_text_stays_in_the_row() -> None:
    rows = [{"question": f"q{i}", "answer": f"so 2 * {i} #### 1,{i}00 "} for i in range(3)]
    read = to_examples(rows)
    assert [e.answer for e in read.examples] == ["1,000", "1,100", "1,200"]
    assert read.examples[0].row["answer"] == "so 2 * 0 #### 1,000 "
    assert "part after '####'" in read.description


def test_the_mark_is_used_only_if_all_of_the_first_hundred_have_it() -> None:
    rows = [{"question": f"q{i}", "answer": f"#### {i}"} for i in range(100)]
    rows[99]["answer"] = "99"
    read = to_examples(rows)
    assert read.examples[0].answer == "#### 0"
    assert "part after" not in read.description
    with pytest.raises(DataError, match="row 100: the answer in 'answer' has no '####'"):
        to_examples(rows, Fields(answer_after="####"))
    late = [*({"question": f"q{i}", "answer": f"#### {i}"} for i in range(100)), {"question": "x", "answer": "7"}]
    with pytest.raises(DataError, match=r"row 101: .* no '####'"):
        to_examples(late)
    assert to_examples(late, Fields(answer_after="")).examples[0].answer == "#### 0"


def test_template_and_system_write_the_prompt() -> None:
    row = {"question": "1 + 1", "context": "sums", "answer": 2}
    plain = Fields(template="{context}: {question}\nAnswer:")
    assert to_examples([row], plain).examples[0].prompt == "sums: 1 + 1\nAnswer:"
    spoken = Fields(template="Question: {question}", system="Be brief.")
    assert to_examples([row], spoken).examples[0].prompt == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Question: 1 + 1"},
    )


def test_a_template_reads_fields_and_nothing_behind_them() -> None:
    row = {"question": "a", "answer": "1", "tags": ["x"]}
    for template in ("{question.__class__}", "{quest}", "{}"):
        with pytest.raises(DataError, match="template names the field"):
            to_examples([row], Fields(template=template))
    with pytest.raises(DataError, match="row 1: the template needs text in 'tags', it is list"):
        to_examples([row], Fields(template="{tags}"))
    with pytest.raises(ConfigError, match="names no field"):
        to_examples([row], Fields(template="hello"))
    with pytest.raises(ConfigError, match="keep one of them"):
        to_examples([row], Fields(template="{question}", prompt="question"))


def test_braces_in_the_data_are_not_a_template() -> None:
    row = {"question": "f{0}(x) = {question.__class__}", "answer": "1"}
    assert (
        to_examples([row], Fields(template="Q: {question}")).examples[0].prompt == "Q: f{0}(x) = {question.__class__}"
    )


def test_a_second_system_message_is_an_error() -> None:
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    assert len(to_examples([{"messages": messages}]).examples[0].prompt) == 2
    with pytest.raises(DataError, match="row 1: the prompt has a system message already"):
        to_examples([{"messages": messages}], Fields(system="c"))


def test_a_conversation_that_ends_with_the_assistant_is_a_demonstration() -> None:
    spoken = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
    for name, value in (("messages", spoken), ("conversations", shared), ("prompt", spoken)):
        example = to_examples([{name: value}]).examples[0]
        assert example.prompt == ({"role": "user", "content": "hi"},)
        assert example.responses == (Response("hello", 1.0),)
    assert to_examples([{"messages": spoken}], kind="prompt").examples[0].responses == ()


def test_a_demonstration_is_one_response_and_must_be_text() -> None:
    example = to_examples([{"prompt": "a", "completion": "b"}], kind="demonstration").examples[0]
    assert (example.prompt, example.responses) == ("a", (Response("b", 1.0),))
    with pytest.raises(DataError, match="row 1: the response in 'completion' must be text"):
        to_examples([{"prompt": "a", "completion": ["b"]}])
    with pytest.raises(DataError, match=r"row 1: no response: pass --data\.fields\.response"):
        to_examples([{"prompt": "a"}], kind="demonstration")


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("  ", "is empty"),
        (7, "must be text or messages, it is int 7"),
        ([], "non-empty list of messages"),
        (["hi"], "must be text or messages, it is list"),
        ([{"role": "user"}], r'prompt\[0\] must have text under "role" and "content"'),
        ([{"from": "martian", "value": "x"}], "unknown speaker 'martian'"),
        ([{"role": "assistant", "content": "x"}], "an assistant message and nothing before it"),
    ],
)
def test_a_prompt_that_is_none_names_its_row(value: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=f"data, row 2: .*{complaint}"):
        to_examples([{"prompt": "fine"}, {"prompt": value}])


def test_skipped_rows_are_counted_by_reason_and_do_not_shift_ids() -> None:
    rows: list[dict[str, Any]] = [{"prompt": ""}, {"prompt": "a"}, {"prompt": 3}, {"prompt": "b"}, {"prompt": " "}]
    read = to_examples(rows, on_bad_row="skip")
    assert [e.id for e in read.examples] == [1, 3]
    assert read.events == {"empty prompt": 2, "prompt type": 1}
    assert "skipped 2: empty prompt" in read.description


def test_skipping_every_row_is_an_error() -> None:
    with pytest.raises(DataError, match=r"none of the 2 rows can be used: \{'empty prompt': 2\}"):
        to_examples([{"prompt": ""}, {"prompt": " "}], on_bad_row="skip")
    with pytest.raises(DataError, match="no rows"):
        to_examples([])
