"""The part of a response that counts as the answer: what stands after the reasoning."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def opened_by_prompt(prompt: str) -> str:
    """The "<think>" (with the white space after it) at the end of a prompt whose template opens it, else ""."""
    start = prompt.rfind(OPEN)
    return prompt[start:] if start >= 0 and prompt[start:].strip() == OPEN else ""


def final_text(text: str, prompt: str = "") -> str | None:
    """What follows the last </think>; the whole text where nothing was ever opened.

    None when the reasoning never ends: <think> stands in the response (or at the end of the prompt, where
    many chat templates put it) with no </think> after it.  A number met inside unfinished reasoning is not an
    answer.  Source: huggingface/trl: trl/rewards (reasoning accuracy reward), which scores these 0.
    """
    tail = (opened_by_prompt(prompt) + text).rpartition(CLOSE)[2]
    return None if OPEN in tail else tail
