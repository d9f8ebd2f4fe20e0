"""Prompts made of others: what the curriculum asks for is sampled, read and encoded."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from unipo.batch import Batch
from unipo.errors import ConfigError, DataError
from unipo.parts.curriculum import Curriculum, Hint, Noise, Rewrite, Rewrites
from unipo.rollout.engine import Request, Rollout, Sampling
from unipo.tasks.chat import PromptTooLong, as_messages, encode_prompt
from unipo.tasks.pictures import MARK
from unipo.tasks.task import Example, Message
from unipo.training.collect import Rewritten
from unipo.training.prompts import Prompt, PromptStream
from unipo.training.ranks import Ranks
from unipo.training.setup import Setup, prompt_room
from unipo.training.source import prompt_seed, score_groups


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


# Token ids of what the policy wrote, the end token included; of several replies, those of the best-rewarded one.
Reply = tuple[int, ...]


class PolicyRewriter:
    """Makes prompts of prompts, asking the policy where the curriculum says so.

    What is made keeps the answer, the data row and the number of its original, and is sampled under a draw of its own.
    The replies themselves are not trained on.  What cannot be used is counted by name.
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
        replies, sampled = self._ask(asked, prompts, events)
        made: list[tuple[Prompt, int, str]] = []
        for request, reply in zip(asked.requests, replies, strict=True):
            prompt = self._made(curriculum, request, reply, prompts[request.prompt], events)
            if prompt is not None:
                made.append((prompt, request.prompt, request.label))
                events[f"prompts rewritten ({request.label})"] += 1
        draws = self.stream.reserve(len(made))
        fresh = tuple(replace(p, draw=draw) for (p, _, _), draw in zip(made, draws, strict=True))
        origins, labels = tuple(o for _, o, _ in made), tuple(name for _, _, name in made)
        return Rewritten(fresh, origins, labels, events, time.perf_counter() - start, sampled)

    def _made(
        self,
        curriculum: Curriculum,
        request: Rewrite | Hint | Noise,
        reply: Reply | None,
        original: Prompt,
        events: Counter[str],
    ) -> Prompt | None:
        if isinstance(request, Noise):
            return None if original.images is None else replace(original, images=original.images.noisier(request.std))
        if reply is None:
            return None
        if isinstance(request, Hint):
            beginning = self._text(reply[: math.floor(request.share * len(reply))])
            text = curriculum.hinted(words_of(original), beginning) if beginning else None
        else:
            text = curriculum.accept(self._text(reply))
        if text is None:
            events["rewriting not usable"] += 1
            return None
        return self._prompt(original, text, events)

    # -- asking the policy -----------------------------------------------------------------------
    def _ask(self, asked: Rewrites, prompts: Sequence[Prompt], events: Counter[str]) -> tuple[list[Reply | None], int]:
        """(what the policy wrote for each request, None where nothing is asked or it is too long; tokens sampled)."""
        setup = self.setup
        room = setup.policy.context_window - asked.max_tokens
        if room < 1:
            raise ConfigError(
                f"curriculum.max_tokens {asked.max_tokens} leaves no room for an instruction in a context of "
                f"{setup.policy.context_window} positions"
            )
        questions = [self._question(request, prompts, room, events) for request in asked.requests]
        draws = self.stream.reserve(len(questions))
        places = [i for i, x in enumerate(questions) if x is not None]
        mine = [places[i] for i in self.ranks.share([1] * len(places))[self.ranks.rank]]
        requests, shown = [], []
        for i in mine:
            question, request = questions[i], asked.requests[i]
            assert question is not None
            shown.append(question)
            n = request.traces if isinstance(request, Hint) else 1
            seed = prompt_seed(setup.config.seed, draws[i])
            requests.append(Request(question.ids, n, seed, images=question.pixels))
        sampling = Sampling(temperature=asked.temperature, max_tokens=asked.max_tokens)
        groups = setup.engine.generate(requests, sampling) if requests else []
        happened: Counter[str] = Counter()
        best = [self._best(q, group, happened) for q, group in zip(shown, groups, strict=True)]
        replies: list[Reply | None] = [None] * len(questions)
        tokens = 0
        sizes = [sum(len(r.tokens) for r in group) for group in groups]
        for indices, written, sampled, seen in self.ranks.gather_objects((mine, best, sizes, happened)):
            tokens += sum(sampled)
            events.update(seen)
            for i, reply in zip(indices, written, strict=True):
                replies[i] = reply
        return replies, tokens

    def _question(
        self, request: Rewrite | Hint | Noise, prompts: Sequence[Prompt], room: int, events: Counter[str]
    ) -> Prompt | None:
        """What the policy is shown for a request; None for one that asks nothing, and where it is too long."""
        setup = self.setup
        try:
            if isinstance(request, Rewrite):
                told = encode_prompt(setup.policy.tokenizer, request.instruction, setup.config.data.chat, room)
                return Prompt(Example(request.instruction), tuple(told))
            if isinstance(request, Hint):
                return self._encoded(prompts[request.prompt], request.question, room)
        except PromptTooLong:
            events["rewriting instruction too long"] += 1
        except DataError:  # the answer holds the name of a control token
            events["rewriting not usable"] += 1
        return None

    def _best(self, question: Prompt, group: list[Rollout], events: Counter[str]) -> Reply:
        """The reply, or of several the one with the highest reward; the first of equals."""
        best = 0
        if len(group) > 1 and self.setup.reward is not None:
            judged = score_groups(self.setup.policy, self.setup.reward, [question], [group])
            events.update(judged.events)
            totals = [-math.inf if m["total"] is None else float(m["total"]) for m in judged.scores[0]]
            best = totals.index(max(totals))
        return tuple(group[best].tokens.tolist())

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.setup.policy.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    # -- a new prompt ----------------------------------------------------------------------------
    def _prompt(self, original: Prompt, text: str, events: Counter[str]) -> Prompt | None:
        setup = self.setup
        try:
            return self._encoded(original, text, prompt_room(setup.config, setup.method, setup.policy))
        except PromptTooLong:
            events["rewritten prompt too long"] += 1
        except DataError:  # the policy wrote the name of a control token, or nothing that has tokens
            events["rewriting not usable"] += 1
        return None

    def _encoded(self, original: Prompt, text: str, room: int) -> Prompt:
        """The original with other words. Raises PromptTooLong, and DataError for words that make no prompt."""
        setup, example = self.setup, original.example
        new: Example = replace(example, prompt=with_problem(example.prompt, text))
        processor = None if original.images is None else setup.policy.processor
        ids = encode_prompt(setup.policy.tokenizer, new, setup.config.data.chat, room, processor)
        return Prompt(new, tuple(ids), images=original.images)
