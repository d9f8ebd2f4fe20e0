"""Prompts that the policy makes of others: what the curriculum asks for is sampled, read and encoded."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.curriculum import Rewrites
from unipo.rollout.engine import Request, Rollout, Sampling
from unipo.tasks.chat import PromptTooLong, as_messages, encode_prompt
from unipo.tasks.pictures import MARK
from unipo.tasks.task import Example, Message
from unipo.training.collect import Rewritten
from unipo.training.prompts import Prompt, PromptStream
from unipo.training.ranks import Ranks
from unipo.training.setup import Setup, prompt_room
from unipo.training.source import prompt_seed


def problem_of(prompt: str | Sequence[Message]) -> str:
    """The text of a prompt that a rewriting replaces: the last user message."""
    if isinstance(prompt, str):
        return prompt
    said = [str(m.get("content", "")) for m in prompt if m.get("role") == "user"]
    if not said:
        raise DataError("a prompt without a user message cannot be rewritten")
    return said[-1]


def with_problem(prompt: str | Sequence[Message], text: str) -> str | Sequence[Message]:
    """The same prompt with its last user message replaced."""
    if isinstance(prompt, str):
        return text
    messages = as_messages(prompt)
    last = max(i for i, m in enumerate(messages) if m.get("role") == "user")
    return [*messages[:last], {**messages[last], "content": text}, *messages[last + 1 :]]


def words_of(prompt: Prompt) -> str:
    """The text to rewrite. The policy does not see the images while it rewrites; they come first in the new prompt."""
    text = problem_of(prompt.example.prompt)
    return text.replace(MARK, "") if prompt.example.images else text


class PolicyRewriter:
    """Asks the policy, and makes prompts of its replies.

    A rewritten prompt keeps the answer, the data row and the number of its original, and is sampled under a draw
    of its own.  The replies themselves are not trained on.  What cannot be used is counted by name.
    """

    def __init__(self, setup: Setup, stream: PromptStream, ranks: Ranks) -> None:
        self.setup, self.stream, self.ranks = setup, stream, ranks

    def __call__(self, batch: Batch, prompts: Sequence[Prompt]) -> Rewritten:
        curriculum = self.setup.method.curriculum
        asked = curriculum.rewrites(batch, [words_of(p) for p in prompts]) if curriculum else None
        if curriculum is None or asked is None or not asked.requests:
            return Rewritten()
        start = time.perf_counter()
        events: Counter[str] = Counter()
        replies, sampled = self._ask(asked, events)
        made: list[Prompt] = []
        labels: list[str] = []
        for request, reply in zip(asked.requests, replies, strict=True):
            text = None if reply is None else curriculum.accept(reply)
            if reply is not None and text is None:
                events["rewriting not usable"] += 1
            prompt = None if text is None else self._prompt(prompts[request.prompt], text, events)
            if prompt is not None:
                made.append(prompt)
                labels.append(request.label)
                events[f"prompts rewritten ({request.label})"] += 1
        draws = self.stream.reserve(len(made))
        fresh = tuple(replace(p, draw=draw) for p, draw in zip(made, draws, strict=True))
        return Rewritten(fresh, tuple(labels), events, time.perf_counter() - start, sampled)

    def _ask(self, asked: Rewrites, events: Counter[str]) -> tuple[list[str | None], int]:
        """(what the policy wrote for each request, None where its instruction is too long; tokens sampled)."""
        setup = self.setup
        room = setup.policy.context_window - asked.max_tokens
        if room < 1:
            raise ConfigError(
                f"curriculum.max_tokens {asked.max_tokens} leaves no room for an instruction in a context of "
                f"{setup.policy.context_window} positions"
            )
        ids: list[list[int] | None] = []
        for request in asked.requests:
            try:
                ids.append(encode_prompt(setup.policy.tokenizer, request.instruction, setup.config.data.chat, room))
            except PromptTooLong:
                events["rewriting instruction too long"] += 1
                ids.append(None)
        draws = self.stream.reserve(len(ids))
        places = [i for i, x in enumerate(ids) if x is not None]
        mine = [places[i] for i in self.ranks.share([1] * len(places))[self.ranks.rank]]
        seed = setup.config.seed
        requests = [Request(x, 1, prompt_seed(seed, draws[i])) for i in mine if (x := ids[i]) is not None]
        sampling = Sampling(temperature=asked.temperature, max_tokens=asked.max_tokens)
        written = setup.engine.generate(requests, sampling) if requests else []
        replies: list[str | None] = [None] * len(ids)
        tokens = 0
        for indices, groups in self.ranks.gather_objects((mine, written)):
            for i, group in zip(indices, groups, strict=True):
                replies[i] = self._text(group[0])
                tokens += len(group[0].tokens)
        return replies, tokens

    def _text(self, rollout: Rollout) -> str:
        return str(self.setup.policy.tokenizer.decode(rollout.tokens.tolist(), skip_special_tokens=True)).strip()

    def _prompt(self, original: Prompt, text: str, events: Counter[str]) -> Prompt | None:
        setup, example = self.setup, original.example
        new: Example = replace(example, prompt=with_problem(example.prompt, text))
        room = prompt_room(setup.config, setup.method, setup.policy)
        try:
            chat, processor = setup.config.data.chat, None if original.images is None else setup.policy.processor
            ids = encode_prompt(setup.policy.tokenizer, new, chat, room, processor)
        except PromptTooLong:
            events["rewritten prompt too long"] += 1
            return None
        except DataError:  # the policy wrote the name of a control token, or nothing that has tokens
            events["rewriting not usable"] += 1
            return None
        return Prompt(new, tuple(ids), images=original.images)
