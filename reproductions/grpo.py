"""GRPO against REINFORCE with a running mean as baseline."""

from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA

REPRODUCTION = Reproduction(
    method="grpo",
    claim="Rewards standardised within each prompt's group of responses take the place of a learned baseline, and learn "
    "more than a baseline common to all prompts.",
    arms={
        "grpo": "grpo[regularisers=[],average=SequenceSum()]",
        "reinforce in groups": "reinforce[source.group_size=8]",
        "reinforce": "reinforce",
    },
    metrics=(ACCURACY, AREA),
    search={"lr": (1e-4, 2e-4, 4e-4)},
    notes="The paper's own baselines are PPO and rejection sampling; REINFORCE with a running mean stands in for a method "
    "without a baseline of the prompt. The claim is about the baseline: GRPO's KL term and its mean over each "
    "response's tokens are left out, so that all arms sum over tokens and none has a reference. The first two draw the same "
    "8 prompts per step with 8 responses each and differ in the advantage alone: with one update per batch the clip never "
    "acts. REINFORCE as it is, one response to each of 64 prompts, is the third arm and shows what groups cost in prompts.",
)
