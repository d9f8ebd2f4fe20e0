"""The starter's tokenizer: one token per printable ASCII character, and seven marks.

`<think>` and `</think>` are ordinary added tokens, so that decoding with special tokens skipped keeps them
(a reward looks for them); the marks of turns, padding and unknown characters are special and go.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END, USER, ASSISTANT = "<pad>", "<unk>", "<|end|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, UNKNOWN, END, USER, ASSISTANT)
THOUGHT = ("<think>", "</think>")
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)))

# Every message is <|role|>content<|end|>; a generation prompt is a bare <|assistant|>.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['user', 'assistant'] -%}"
    "{{- raise_exception('the starter model knows the roles user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def build_tokenizer(longest: int = 512) -> PreTrainedTokenizerFast:
    """A character tokenizer with chat template; anything but printable ASCII and newline is `<unk>`.

    `<|end|>` ends a turn and is the end-of-sequence token; `<pad>` is another token, so that no mask can
    mistake one for the other.
    """
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *THOUGHT, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in THOUGHT])
    untyped: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = untyped(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=longest,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    return made
