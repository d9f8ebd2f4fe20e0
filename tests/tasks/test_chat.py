"""Prompts and responses as token ids: one BOS, the end of the turn included, and nothing re-tokenised."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from unipo.errors import ConfigError, DataError
from unipo.tasks.chat import Chat, PromptTooLong, encode_prompt, encode_prompts, encode_response, uses_template
from unipo.tasks.task import Example

BOS, END, EOS, UNKNOWN = "<s>", "<|end|>", "</s>", "<unk>"
CHARACTERS = [chr(c) for c in range(32, 127)] + ["\n"]

# <s>[role]text<|end|>\n ... as ChatML: white space follows the end of every turn.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
# No special token ends a turn.
BARE = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
# The generation prompt opens a thought that the rendered conversation does not have.
BROKEN = TEMPLATE.replace("'[assistant]'", "'[assistant]<think>'")


def make(
    template: str | None = TEMPLATE,
    eos: str = END,
    pad: str | None = None,
    merges: tuple[tuple[str, str], ...] = (),
    around: str = f"{BOS} $A",
) -> Any:
    """A tokenizer of printable characters (with BPE merges, if any) that writes `around` about plain text."""
    specials = [BOS, END, EOS, UNKNOWN]
    vocabulary = {t: i for i, t in enumerate([*specials, *CHARACTERS, *("".join(m) for m in merges)])}
    if merges:
        tokenizer = Tokenizer(models.BPE(vocabulary, list(merges), unk_token=UNKNOWN))
    else:
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=around, special_tokens=[(t, vocabulary[t]) for t in specials]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=eos,
        pad_token=pad,
        unk_token=UNKNOWN,
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def said(tokenizer: Any, ids: list[int]) -> str:
    return "".join(tokenizer.convert_ids_to_tokens(ids))


SPOKEN = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})


def test_messages_go_through_the_template_with_its_generation_prompt() -> None:
    tokenizer = make()
    ids = encode_prompt(tokenizer, Example(SPOKEN))
    assert said(tokenizer, ids) == "<s>[system]s<|end|>\n[user]u<|end|>\n[assistant]"
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids == list(
        tokenizer.apply_chat_template([dict(m) for m in SPOKEN], add_generation_prompt=True, return_dict=False)
    )


def test_text_is_one_user_message_exactly_where_there_is_a_template() -> None:
    wrapped, plain = make(), make(template=None)
    assert said(wrapped, encode_prompt(wrapped, "u")) == "<s>[user]u<|end|>\n[assistant]"
    assert said(wrapped, encode_prompt(wrapped, "u", chat="never")) == "<s>u"
    assert said(plain, encode_prompt(plain, "u")) == "<s>u"
    assert uses_template(wrapped, "u")
    assert not uses_template(plain, "u")


def test_what_needs_a_template_that_is_not_there_is_refused() -> None:
    plain = make(template=None)
    for prompt, chat in (("u", "always"), (SPOKEN, "auto"), (SPOKEN, "always")):
        with pytest.raises(ConfigError, match="needs a chat template, and this tokenizer has none"):
            encode_prompt(plain, prompt, chat=chat)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="this one is a list of messages"):
        encode_prompt(make(), SPOKEN, chat="never")
    with pytest.raises(ConfigError, match="auto, always or never"):
        encode_prompt(make(), "u", chat="sometimes")  # type: ignore[arg-type]


def test_plain_text_gets_one_bos_and_never_an_eos() -> None:
    for around in (f"{BOS} $A", f"{BOS} $A {EOS}"):
        tokenizer = make(template=None, around=around)
        assert said(tokenizer, encode_prompt(tokenizer, "ab")) == "<s>ab"
        assert said(tokenizer, encode_prompt(tokenizer, "<s>ab")) == "<s>ab"
    bare = make(template=None, around="$A")
    assert said(bare, encode_prompt(bare, "ab")) == "ab"


@pytest.mark.parametrize("pad", [None, END, UNKNOWN], ids=["no pad", "pad is eos", "pad apart"])
def test_prompt_and_response_are_the_rendered_conversation_up_to_the_end_of_the_turn(pad: str | None) -> None:
    tokenizer = make(pad=pad)
    prompt_ids = encode_prompt(tokenizer, SPOKEN)
    response = encode_response(tokenizer, "hello", SPOKEN, prompt_ids)
    assert said(tokenizer, response) == "hello<|end|>"
    whole = [*(dict(m) for m in SPOKEN), {"role": "assistant", "content": "hello"}]
    rendered = list(tokenizer.apply_chat_template(whole, return_dict=False))
    assert said(tokenizer, rendered[len(prompt_ids) + len(response) :]) == "\n"
    assert [*prompt_ids, *response] == rendered[:-1]


@given(
    user=st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=12),
    text=st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=12),
    chat=st.sampled_from(["auto", "always", "never"]),
)
def test_a_response_says_its_text_and_ends_exactly_once(user: str, text: str, chat: Chat) -> None:
    tokenizer = make()
    prompt_ids = encode_prompt(tokenizer, user, chat)
    response = encode_response(tokenizer, text, user, prompt_ids, chat)
    assert said(tokenizer, response) == text + END
    assert response.count(tokenizer.eos_token_id) == 1


def test_a_turn_may_end_with_a_special_token_that_is_not_eos() -> None:
    tokenizer = make(eos=EOS)
    response = encode_response(tokenizer, "hello", "u", encode_prompt(tokenizer, "u"))
    assert said(tokenizer, response) == "hello<|end|>"


def test_eos_is_added_where_the_template_ends_a_turn_with_nothing_special() -> None:
    tokenizer = make(template=BARE)
    prompt_ids = encode_prompt(tokenizer, "u")
    assert said(tokenizer, prompt_ids) == "user: u\nassistant: "
    assert said(tokenizer, encode_response(tokenizer, "hi", "u", prompt_ids)) == "hi\n<|end|>"


def test_plain_responses_are_encoded_by_themselves() -> None:
    tokenizer = make(template=None, merges=((":", "4"),))
    prompt_ids = encode_prompt(tokenizer, "A:")
    assert tokenizer.tokenize("A:42") == ["A", ":4", "2"]
    assert tokenizer.convert_ids_to_tokens(encode_response(tokenizer, "42", "A:", prompt_ids)) == ["4", "2", END]


def test_a_template_that_does_not_continue_its_own_prompt_is_an_error() -> None:
    tokenizer = make(template=BROKEN)
    with pytest.raises(DataError, match="does not continue its own prompt"):
        encode_response(tokenizer, "hello", "u", encode_prompt(tokenizer, "u"))


def test_tokens_merged_across_the_start_of_the_response_are_an_error() -> None:
    tokenizer = make(merges=(("]", "h"),))
    prompt_ids = encode_prompt(tokenizer, "u")
    with pytest.raises(DataError, match="does not begin with the prompt's tokens"):
        encode_response(tokenizer, "hello", "u", prompt_ids)
    assert said(tokenizer, encode_response(tokenizer, "yes", "u", prompt_ids)) == "yes<|end|>"


def test_ids_of_another_prompt_are_an_error() -> None:
    tokenizer = make()
    with pytest.raises(DataError, match="prompt_ids are of another prompt"):
        encode_response(tokenizer, "hello", "u", encode_prompt(tokenizer, "v"))


@pytest.mark.parametrize("token", [BOS, END, EOS])
def test_a_control_token_written_in_data_is_an_error(token: str) -> None:
    tokenizer = make()
    prompt_ids = encode_prompt(tokenizer, "u")
    with pytest.raises(DataError, match=r"the user text .* contains the control token"):
        encode_prompt(tokenizer, f"a {token} b")
    with pytest.raises(DataError, match=r"the assistant text .* contains the control token"):
        encode_response(tokenizer, f"a {token} b", "u", prompt_ids)
    with pytest.raises(DataError, match="contains the control token"):
        encode_response(tokenizer, f"a {token} b", "u", encode_prompt(tokenizer, "u", "never"), "never")


def test_an_empty_prompt_and_one_that_ends_with_the_assistant_are_errors() -> None:
    for tokenizer, prompt in ((make(), ""), (make(template=None), ""), (make(), ())):
        with pytest.raises(DataError, match="the prompt is empty"):
            encode_prompt(tokenizer, prompt)  # type: ignore[arg-type]
    nothing = make(template="{{ '' }}")
    with pytest.raises(DataError, match="has no tokens"):
        encode_prompt(nothing, "u")
    with pytest.raises(DataError, match="must not end with an assistant message"):
        encode_prompt(make(), [*SPOKEN, {"role": "assistant", "content": "x"}])


def test_what_a_template_refuses_is_an_error_that_quotes_it() -> None:
    picky = make(template="{{ raise_exception('no system messages here') }}")
    with pytest.raises(DataError, match="the chat template refuses .*no system messages here"):  # noqa: RUF043
        encode_prompt(picky, SPOKEN)


def test_a_prompt_that_is_too_long_stops_or_is_counted_and_nothing_is_cut() -> None:
    tokenizer = make(template=None)
    examples = [Example("abc", id=3), Example("abcd", id=4), Example("abcdefgh", id=5)]
    assert len(encode_prompt(tokenizer, "abc", max_tokens=4)) == 4
    with pytest.raises(PromptTooLong, match="has 5 tokens, 4 fit"):
        encode_prompt(tokenizer, "abcd", max_tokens=4)
    with pytest.raises(PromptTooLong, match="example 4: "):
        encode_prompts(tokenizer, examples, max_tokens=4)
    read = encode_prompts(tokenizer, examples, max_tokens=4, on_too_long="skip")
    assert [e.id for e in read.examples] == [3]
    assert [said(tokenizer, ids) for ids in read.ids] == ["<s>abc"]
    assert read.events == {"prompt too long": 2}
    with pytest.raises(DataError, match="all 3 prompts have more than 2 tokens"):
        encode_prompts(tokenizer, examples, max_tokens=2, on_too_long="skip")


def test_other_errors_are_never_skipped() -> None:
    with pytest.raises(DataError, match="example 7: the prompt is empty"):
        encode_prompts(make(), [Example("a", id=6), Example("", id=7)], on_too_long="skip")


def test_a_response_that_could_never_end_is_an_error() -> None:
    tokenizer = make(template=None)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token"):
        encode_response(tokenizer, "a", "u", encode_prompt(tokenizer, "u"))
