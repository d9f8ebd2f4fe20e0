r"""Format rewards: did the response use the tags.

Every pattern is matched from \A to \Z over the whole response with DOTALL and without MULTILINE.  The
open-r1 and TRL rewards compile with MULTILINE, where "$" also matches before any newline, so that text after
</answer> still scores 1.0; that is the trap these avoid.  Templates that end the prompt with "<think>\n" have
that piece put back before matching.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from unipo.errors import ConfigError, unknown
from unipo.rewards.policy import leaf_scores
from unipo.rewards.thinking import opened_by_prompt
from unipo.tasks.task import Sample, Scores

R1_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
R1 = re.compile(r"\A<think>\n(?P<think>.*)\n</think>\n<answer>\n(?P<answer>.*)\n</answer>\Z", re.DOTALL)
ANSWER = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>[\s!]*\Z", re.DOTALL)
THINK = re.compile(r"\A<think>.*</think>.*\Z", re.DOTALL)
COUNTED_TAGS = ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>")


def r1_format(text: str) -> bool:
    """<think>\\n...\\n</think>\\n<answer>\\n...\\n</answer> and nothing around it.

    Stricter than DeepSeek-R1's description (arXiv 2501.12948, section 2.2.2) where that is silent: each tag
    exactly once, both blocks with something in them, line ends are "\\n", not even white space after </answer>.
    """
    match = R1.match(text)
    return (
        match is not None
        and all(text.count(tag) == 1 for tag in R1_TAGS)
        and bool(match["think"].strip())
        and bool(match["answer"].strip())
    )


def think_format(text: str) -> bool:
    """Starts with <think>, has it once and </think> once, then anything (huggingface/trl: think_format_reward)."""
    return THINK.match(text) is not None and text.count("<think>") == 1 and text.count("</think>") == 1


def answer_format(text: str) -> bool:
    """Ends with <think>...</think><answer>...</answer>, each opened once (longmalongma/TW-GRPO: grpo.py: format_reward)."""
    return text.count("<think>") == 1 == text.count("<answer>") and ANSWER.search(text) is not None


def boxed_format(text: str) -> bool:
    r"""Has exactly one \boxed{ in it."""
    return text.count("\\boxed{") == 1


def tag_count(text: str) -> float:
    """0.25 for each of the four R1 tags, newlines included, that occurs exactly once (huggingface/open-r1: tag_count_reward)."""
    return sum(0.25 for tag in COUNTED_TAGS if text.count(tag) == 1)


KINDS: Mapping[str, Callable[[str], float]] = {
    "r1": r1_format,
    "think": think_format,
    "answer": answer_format,
    "boxed": boxed_format,
    "tags": tag_count,
}


@dataclass(frozen=True)
class Format:
    """Whether the response has a form.

    kind: "r1", "think", "answer" or "boxed" give 1 or 0; "tags" gives 0, 0.25, ... 1 (see the functions of these names).
    pattern: a regular expression instead, for the whole response (\\A and \\Z are implied, "." matches newlines).
    name: "format:<kind>" unless given.
    """

    kind: str = "r1"
    pattern: str | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if self.pattern is None and self.kind not in KINDS:
            raise unknown("format", self.kind, KINDS)
        if self.pattern is not None:
            try:
                re.compile(self.pattern, re.DOTALL)
            except re.error as error:
                raise ConfigError(f"format pattern {self.pattern!r} is not a regular expression: {error}") from error
        if not self.name:
            object.__setattr__(self, "name", f"format:{self.kind if self.pattern is None else 'pattern'}")

    def of(self, text: str, prompt: str = "") -> float:
        """The value for one response."""
        whole = opened_by_prompt(prompt) + text
        if self.pattern is not None:
            return float(re.fullmatch(self.pattern, whole, re.DOTALL) is not None)
        return float(KINDS[self.kind](whole))

    def __call__(self, samples: Sequence[Sample]) -> Scores:
        return leaf_scores(self.name, [self.of(sample.text, sample.prompt) for sample in samples])
