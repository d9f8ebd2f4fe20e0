"""PAPO against GRPO where a hint in the question is right four times in five and the picture always."""

import re
from pathlib import Path
from random import Random

from unipo.reproduce import Metric, Reproduction
from unipo.reproduce.claim import ACCURACY, AREA
from unipo.reproduce.lesson import Lesson
from unipo.reproduce.logs import late
from unipo.reproduce.rigged import RiggedReward, examples, questions
from unipo.tasks.dataset import DatasetTask
from unipo.tasks.registry import register_task
from unipo.tasks.task import Sample

SEE = "regularisers.1.context=CorruptedContext(opening='/',closing='/')"


def picture(rng: Random, hint_right: float) -> str:
    """Six places between slashes, one of which holds the answer; a word; then a digit that often is the answer."""
    seen, place = rng.randrange(10), rng.randrange(6)
    other = (seen + rng.randrange(1, 10)) % 10
    hint = seen if rng.random() < hint_right else other
    word = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=4))
    return f"/{'.' * place}{seen}{'.' * (5 - place)}/ {word} {hint}"


def answer(question: str) -> str:
    return "".join(re.findall(r"\d", question.rpartition("/")[0]))


def right(sample: Sample) -> float:
    return float(sample.text == answer(str(sample.row["question"])))


def write(rng: Random) -> tuple[str, str]:
    """A demonstration: five in six say what the hint says, whether or not it is right."""
    question = picture(rng, 0.0)
    return question, question[-1] if rng.random() < 5 / 6 else answer(question)


def pictures(size: int = 4096, heldout: int = 512, seed: int = 0) -> DatasetTask:
    """Held out are only questions whose hint is wrong."""
    train = examples(questions(lambda rng: picture(rng, 0.8), "train", size, seed), answer)
    held = examples(questions(lambda rng: picture(rng, 0.0), "heldout", heldout, seed), answer)
    return DatasetTask("pictures", train, held, RiggedReward(right))


def entropy(run: Path) -> dict[str, float]:
    return {"entropy": late(run, "entropy")}


register_task("pictures-with-hints", pictures)
REPRODUCTION = Reproduction(
    method="papo",
    claim="Paying the policy for answering differently when its picture is destroyed makes it read the picture: more "
    "right answers than GRPO where the words mislead, over the same training.",
    arms={
        "papo": f"papo[{SEE}]",
        "grpo": "papo[regularisers.1.gamma=0.0]",
        "papo, gamma 0.1": f"papo[{SEE},regularisers.1.gamma=0.1]",
    },
    metrics=(
        AREA,
        ACCURACY,
        Metric("entropy", "entropy in the last fifth, nats per token", higher=False, kind="number"),
    ),
    measure=entropy,
    task="pictures-with-hints",
    start=Lesson(write),
    responses=60,
    budget="30 steps",
    points=5,
    train={"sampling": {"max_tokens": 4}},
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="area",
    notes="The picture is six characters of text of which one is a digit; spaces replace each with probability 0.6, as "
    "the paper blacks out patches. A digit in the words is right in 80 % of the training questions and in none of the "
    "held-out ones; the lesson follows it 5 times in 6. The paper trains vision models; a gamma of 0.04 collapsed there. "
    "Given time every arm reads the picture (60 "
    "steps in a trial run), so the mean over 30 steps decides. The extra pass is not counted; all runs cost the same tokens.",
)
