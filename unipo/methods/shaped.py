"""Rewards that need the group, the past or several components, in front of plain GRPO."""

from unipo.method import Paper
from unipo.methods.grpo import grpo
from unipo.parts.advantage import GroupNormalised
from unipo.parts.average import TokenMean
from unipo.parts.components import ComponentSum
from unipo.parts.history import CallEfficiency, HistoryLength
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.selection import DynamicSampling
from unipo.parts.source import OnPolicy
from unipo.parts.unlikeliness import Unlikeliness
from unipo.registry import register

unlikeliness = register(
    grpo.but(
        name="unlikeliness-reward",
        paper=Paper(
            "Rewarding the Unlikely: Lifting GRPO Beyond Distribution Sharpening",
            "2506.02355",
            "AndreHe02/rewarding-unlikely-release",
        ),
        summary="Right answers earn less the likelier they were in their group, so rare ones are learned too.",
        source=OnPolicy(group_size=32, epochs=2),
        selection=(DynamicSampling(surplus="use"),),
        shaping=(Unlikeliness(beta=0.25),),
        advantage=GroupNormalised(eps=1e-6),
        average=TokenMean(),
        regularisers=(ReferenceKL(beta=0.1, estimator="k3"),),
        defaults={"learning_rate": 1e-6, "skip_grad_norm": 20.0},
        aliases=("unlikeliness",),
        notes=(
            "Ranks are over the whole group, wrong responses included, by the mean token log-prob of the old policy.",
            "Groups that are all right are dropped: the discount would be their only signal, at full size.",
            "Informative groups are gathered until there are enough, and all of them are trained on (surplus='use'); "
            "the code's buffer holds 256 responses, 8 prompts of 32.",
            "The code samples 16 prompts a round, whatever the batch needs; here a round is as large as the batch. After "
            "10 rounds what there is is trained on; the code has no limit (selection.0.rounds=0).",
            "More epochs per batch are the paper's second lever: likely responses leave the clip range and rare ones "
            "go on.",
            "A step whose gradient norm exceeds 20 is left out and counted, as in the code (optim.skip_grad_norm).",
            "shaping.0.shift=1 is the paper's formula as recalled; the order of the rewards is the same.",
        ),
        doubts=(
            "The paper's exact rank offset, and whether it ranks by summed log-prob (shaping.0.mean=false).",
            "The baseline's KL and number of epochs in each table.",
        ),
        limits=(
            "Where right responses to a prompt are word for word the same, their ranks are ties, and the discount is noise.",
            "What is won shows over many samples; for few, the paper's toy problem has GRPO ahead.",
        ),
    )
)

hapo = register(
    grpo.but(
        name="hapo",
        paper=Paper(
            "HAPO: Training Language Models to Reason Concisely via History-Aware Policy Optimization",
            "2505.11225",
            "HCY123902/HAPO",
        ),
        summary="Reward right answers for beating the shortest right answer the run has seen for the same prompt.",
        source=OnPolicy(group_size=2),
        shaping=(HistoryLength(),),
        notes=(
            "The record of every prompt lies in checkpoints; evaluation does not touch it.",
            "It is updated after the batch was judged, so all responses of a batch see the same record.",
            "Two right responses of the same length give no gradient, however far above the record.",
            "The repetition penalty of the code is off by default. The reward `repetition` here counts repeated n-grams of "
            "words; the code averages over the tokens that lie in one.",
            "The script samples at temperature 0.7 (sampling.temperature).",
            "shaping.0.record=mean and shaping.0.kind=linear are the code's other modes.",
        ),
        doubts=(
            "The group size of the paper's tables: the script has 2, the argument's default is 4.",
            "The learning rate.",
            "Nothing is forgotten: one lucky short answer makes every later answer too long.",
        ),
        limits=(
            "Prompts that come once have no history, and no length reward.",
            "One short lucky answer lowers the record of its prompt for good; accuracy falls by some points in the paper.",
        ),
    )
)

otc = register(
    grpo.but(
        name="otc-po",
        paper=Paper("OTC: Optimal Tool Calls via Reinforcement Learning (Acting Less is Reasoning More)", "2504.14870"),
        summary="Right answers earn most with as few tool calls as the question was ever solved with.",
        shaping=(CallEfficiency(smooth=4.0),),
        aliases=("otc-grpo",),
        notes=(
            "Calls are stretches of tokens the policy did not write, or a part of the reward (shaping.0.calls=NAME).",
            "The fewest calls of a question are lowered by the batch itself before its rewards are computed, and are "
            "kept over the run; shaping.0.stored=false looks at the group alone.",
            "smooth is the largest number of turns: 4 for search, 3 for code.",
            "shaping=CallCost() is the form of OTC-PPO, which has one response per prompt and no memory.",
            "Answers are sampled in one turn without tools here, so without shaping.0.calls every factor is 1 and this is "
            "GRPO.",
        ),
        doubts=(
            "What to do when the fewest calls came from a lucky guess: no rule of forgetting is given.",
            "Group size, KL and learning rate follow the search and code set-ups the paper builds on; GRPO's here.",
        ),
        limits=(
            "One lucky answer with few calls lowers a question's minimum for good.",
            "A small model lost accuracy in the paper: 40.3 to 35.5 % for 3B, with PPO.",
        ),
    )
)

mo_grpo = register(
    grpo.but(
        name="mo-grpo",
        paper=Paper("Optimizing Safe and Aligned Language Generation: A Multi-Objective GRPO Approach", "2503.21819"),
        summary="Several scores of each answer, averaged into one reward, then GRPO.",
        shaping=(ComponentSum(),),
        notes=(
            "The components are the reward's own parts, before its weights: shaping.0.names and shaping.0.weights "
            "choose and weigh them.",
            "Every component is logged as reward/NAME.",
            "Other ways to one number: shaping=ComponentMin(), shaping=ComponentGate(gate='safety').",
            "shaping=(), advantage=ComponentsNormalised() standardises every component first, so that its scale does "
            "not matter.",
        ),
        doubts=(
            "Reconstructed: weights, group size, KL coefficient and data sizes are not known; equal weights and GRPO's "
            "settings here.",
            "The paper trains one reward model with four heads; any reward that reports parts is used here.",
        ),
        limits=(
            "A score with a wide spread outweighs the others; raising one score at the cost of another pays wherever their sum grows.",
        ),
    )
)
