"""CLPO against GRPO, with and without its filter, on problems in which a needless part hides the question."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from unipo.batch import Batch
from unipo.parts.curriculum import RewriteByDifficulty, Rewrites
from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.scratchpad import ScratchpadReward, scratchpad_task
from unipo.tasks.task import Example

HIDES = " & "  # stands between the question and a part that is not to be answered
WAITING: deque[str] = deque()


@dataclass(frozen=True)
class RewriteByRule(RewriteByDifficulty):
    """Rewrites by rule what CLPO asks the policy to rewrite: a model of one million weights cannot do it.

    Hard: the needless part goes.  Medium: another needless part.  One token is sampled for each, and not read.
    """

    temperature: float = 1.0
    max_tokens: int = 1

    def rewrites(self, batch: Batch, problems: Sequence[str]) -> Rewrites | None:
        asked = super().rewrites(batch, problems)
        if asked is None:
            return None
        WAITING.clear()
        for request in asked.requests:
            question, _, rest = problems[request.prompt].partition(HIDES)
            other = hidden(question, Random(problems[request.prompt]))
            WAITING.append(question if request.label == "hard" or not rest else other)
        return asked

    def instruction(self, label: str, problem: str, answer: str | None) -> str:
        return problem

    def accept(self, text: str) -> str | None:
        return WAITING.popleft()


def hidden(question: str, rng: Random) -> str:
    """A question with a needless part after it."""
    return f"{question}{HIDES}{rng.randint(10, 99)}{rng.choice('+-')}{rng.randint(10, 99)}"


def hidden_task(size: int = 4096, heldout: int = 512, seed: int = 0) -> DatasetTask:
    """Scratchpad problems, each with a needless part."""
    plain, rng = scratchpad_task(size=size, heldout=heldout, seed=seed), Random(f"hidden {seed}")

    def hide(example: Example) -> Example:
        return replace(example, prompt=[{"role": "user", "content": hidden(str(example.row["question"]), rng)}])

    return DatasetTask("hidden", tuple(map(hide, plain.train)), tuple(map(hide, plain.heldout)), ScratchpadReward())


register_task("hidden", hidden_task)

REPRODUCTION = Reproduction(
    method="clpo",
    claim="Rewriting the prompts that are hard or medium for the policy, and learning from those with mixed outcome beside "
    "the originals, ends with a higher held-out accuracy than GRPO.",
    arms={
        "clpo": "clpo[curriculum=RewriteByRule()]",
        "grpo": "clpo[curriculum=None,selection=[]]",
        "filter alone": "clpo[curriculum=None]",
    },
    metrics=(ACCURACY, AREA),
    task="hidden",
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="The rewriting is done by a rule, as the shipped model knows sums and no language; the paper's policy is shown the "
    "answer and rewrites itself. Every problem, held-out ones too, has a needless part; a rewriting of a hard one lacks "
    "it. The budget counts all sampled tokens, the rewritten prompts' too; the paper compares steps.",
)
