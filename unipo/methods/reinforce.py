"""The score-function family: no trust region to speak of, the baseline is the idea."""

from unipo.method import Method, Paper
from unipo.parts.advantage import CentredReturn, LeaveOneOut, RunningBaseline, WhitenedReturn
from unipo.parts.average import SequenceMean, SequenceSum, TokenMean
from unipo.parts.objective import Clipped, ScoreFunction, SequenceClipped
from unipo.parts.regulariser import ReferenceKL
from unipo.parts.shaping import KLInReward
from unipo.parts.source import OnPolicy
from unipo.registry import register

reinforce = register(
    Method(
        name="reinforce",
        paper=Paper("Simple statistical gradient-following algorithms (Williams 1992)"),
        summary="Score-function gradient with a running-mean baseline; the response is one action.",
        source=OnPolicy(group_size=1),
        advantage=RunningBaseline(decay=0.9),
        objective=ScoreFunction(),
        average=SequenceSum(),
        notes=("Strictly on-policy: one update per batch, no importance ratio.",),
        limits=(
            "Every batch serves one update: older samples would need a ratio.",
            "One baseline for all prompts does not know how hard each is; all tokens of a response get the same credit.",
        ),
    )
)

rloo = register(
    reinforce.but(
        name="rloo",
        paper=Paper("Back to Basics: Revisiting REINFORCE Style Optimization", "2402.14740", "huggingface/trl"),
        summary="Baseline: the mean reward of the other responses to the same prompt; KL inside the reward.",
        source=OnPolicy(group_size=4),
        shaping=(KLInReward(beta=0.05, estimator="k1"),),
        advantage=LeaveOneOut(),
        objective=SequenceClipped(low=0.2, high=0.2, geometric=False),
        average=SequenceMean(),
        defaults={"learning_rate": 1e-6},
        notes=(
            "TRL's form: the ratio is the product over the response, clipped at 0.2, mean over responses.",
            "The paper's form is objective=ScoreFunction(), average=SequenceSum(); on the first update of a batch both "
            "have the same gradient.",
            "A group of one has no baseline and is refused (verl silently uses A = R).",
        ),
        doubts=(
            "Which KL estimator the paper used per token.",
            "TRL's group of 2 against the paper's 2 and 4: 4 here.",
        ),
    )
)

reinforce_pp = register(
    reinforce.but(
        name="reinforce++",
        paper=Paper("REINFORCE++: Stabilizing Critic-Free Policy Optimization", "2501.03262", "OpenRLHF/OpenRLHF"),
        summary="One response per prompt, token returns standardised over the whole batch, PPO clip.",
        source=OnPolicy(group_size=1),
        advantage=WhitenedReturn(beta=0.01, estimator="k1", gamma=1.0),
        objective=Clipped(low=0.2, high=0.2),
        average=TokenMean(),
        aliases=("reinforce-plus-plus",),
        notes=(
            "The reward sits on the last counted token; the KL is a token reward and is part of the return.",
            "Moments are over counted tokens, so long responses move the mean more than short ones.",
            "Its variant with a baseline is `reinforce++-baseline`.",
        ),
        doubts=("The paper's published numbers differ between its versions.",),
    )
)

reinforce_pp_baseline = register(
    reinforce_pp.but(
        name="reinforce++-baseline",
        summary="REINFORCE++ on the reward minus its group's mean, with the KL in the loss.",
        source=OnPolicy(group_size=4),
        advantage=CentredReturn(beta=0.0),
        regularisers=(ReferenceKL(beta=0.01, estimator="k2"),),
        notes=(
            "The group's mean is taken off, and the standard deviation is the batch's: a group that agrees gives no signal "
            "of its own, but tokens are standardised with those of all others.",
            "The KL is a term of the loss with k2, whose gradient is that of the KL.",
        ),
        doubts=(
            "Group size and strength of the KL differ between the paper's versions and OpenRLHF's scripts: 4 and 0.01 here.",
        ),
    )
)
