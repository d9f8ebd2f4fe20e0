"""Which prompts are sampled and which samples are trained on."""

from unipo.method import Paper
from unipo.methods.grpo import grpo, grpo_token
from unipo.parts.advantage import GroupNormalised
from unipo.parts.curriculum import DomainWeights, RewriteByDifficulty
from unipo.parts.difficulty import DifficultyKL
from unipo.parts.downsampling import StrongestTokens, WidestAdvantages
from unipo.parts.selection import MixedOutcomes, PassRateBand
from unipo.parts.source import OnPolicy
from unipo.registry import register

difficulty_filtering = register(
    grpo.but(
        name="online-difficulty-filtering",
        paper=Paper("Online Difficulty Filtering for Reasoning Oriented Reinforcement Learning", "2504.03380"),
        summary="Train on prompts the current policy solves about half of the time, sampling on until there are enough.",
        source=OnPolicy(group_size=16),
        selection=(PassRateBand(low=0.3, high=0.7),),
        notes=(
            "The batch always has its full size: a dry one is filled with prompts of mixed outcome, then with any.",
            "low=0, high=1 is dynamic sampling for 0/1 scores; low=-1, high=2 is GRPO.",
            "Rejected prompts come again with the next pass over the data, judged by the policy of then.",
            "For scores that are not 0 or 1: selection=VarianceAbove().",
            "Prompts beyond the need are dropped, because the policy will have moved (selection.0.surplus).",
        ),
        doubts=(
            "The asynchronous scheduling and what happens to surplus groups are not described.",
            "Optimiser settings; the constant in the paper's bound.",
        ),
        limits=(
            "Where few prompts are in the band most samples are in vain: of those solved 10 or 90 % of the time, 1.7 % are kept.",
            "Its gain is per update, smaller per sample. Small groups make the band coarse: 3, 4 or 5 right of 8.",
        ),
    )
)

dads = register(
    grpo_token.but(
        name="dads-rulereasoner",
        paper=Paper(
            "RuleReasoner: Reinforced Rule-based Reasoning via Domain-aware Dynamic Sampling",
            "2506.08672",
            "bigai-nlco/RuleReasoner",
        ),
        summary="Draw more prompts from the domains whose mean reward is furthest below a target.",
        curriculum=DomainWeights(),
        source=OnPolicy(group_size=64),
        advantage=GroupNormalised(eps=1e-6),
        defaults={"learning_rate": 1e-6},
        aliases=("dads", "rulereasoner"),
        notes=(
            "The domain is a field of the data row, curriculum.field: else domain, data_source or kind.",
            "The code's eps = 0.1 inside the exponent cancels and is left out; its other default for tau is 0.8.",
            "A domain that was not in the batch keeps its reward; the code forgets it and never draws it again.",
            "curriculum.smooth=0, curriculum.target=0.5208 is what the released trainer computes.",
            "64 prompts of 64 responses per step in the paper, at temperature 0.8; no group is filtered out.",
        ),
        doubts=("The paper's exact target, and whether its smoothing weighs the old or the new reward by alpha.",),
        limits=(
            "It needs data that name their domain, and rewards that mean the same in all of them.",
            "With fewer prompts per step than domains only those of the largest weights are drawn.",
            "A domain that cannot be learnt keeps drawing the most prompts. Where all are at the target it is uniform.",
        ),
    )
)

clpo = register(
    grpo_token.but(
        name="clpo",
        paper=Paper(
            "CLPO: Curriculum Learning meets Policy Optimization for LLM Reasoning", "2509.25004", "csuking/CLPO"
        ),
        summary="The policy rewrites the prompts it finds hard or medium, and learns from those with mixed outcome.",
        curriculum=RewriteByDifficulty(),
        source=OnPolicy(group_size=4),
        selection=(MixedOutcomes(),),
        advantage=GroupNormalised(eps=1e-6),
        regularisers=(DifficultyKL(beta=0.001, estimator="k3", hard=0.5),),
        defaults={"learning_rate": 1e-6, "warmup_steps": 10},
        notes=(
            "Costs up to twice the responses, and one rewriting per hard or medium prompt; counted in tokens/sampled.",
            "Rewritten prompts keep the answer and the data row; they are groups of their own.",
            "A batch has between none and twice the prompts asked for; one without any is skipped and counted.",
            "curriculum.modes=hard or medium are the paper's ablations; curriculum=None leaves the filter and the KL.",
            "Mini-batches of 8 prompts of 64 in the paper: source.minibatches=8.",
            "The code trims the batch to a multiple of its workers; ranks need no such thing here.",
        ),
        doubts=(
            "The paper's wording of the KL schedule (the code has 0.5 for hard), and its group size.",
            "Whether the gain survives equal compute.",
            "The instructions for rewriting are this library's own words.",
        ),
        limits=(
            "The policy must rewrite without changing the answer; what it spoils is sampled and dropped.",
            "Up to twice the responses and a rewriting per prompt; no comparison at equal compute is published.",
        ),
    )
)

d3s = register(
    grpo_token.but(
        name="d3s",
        paper=Paper(
            "Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy Optimization",
            "2509.22115",
        ),
        summary="Sample many, train on the responses with the widest advantages and their strongest tokens.",
        source=OnPolicy(group_size=16),
        selection=(WidestAdvantages(), StrongestTokens()),
        notes=(
            "Advantages are those of the full group and are not normalised again; their sum is no longer 0.",
            "The loss is divided by the number of kept tokens.",
            "Shares grow linearly over the run; first=last switches the schedule off (D2S).",
            "selection.0.across=false chooses inside each group (D3S-I).",
            "Entropy is the rollout policy's, which sampling gives for nothing.",
        ),
        doubts=(
            "All four shares: the paper's table was not seen.",
            "Whether entropy is the old or the current policy's, and whether the token share is per batch or response.",
            "The denominator of the loss.",
            "With GSPO the ratio should use all tokens of a response and the selection only the loss; a token "
            "selection here also narrows the sequence ratio, so d3s stands on GRPO alone.",
        ),
        limits=(
            "Everything is sampled and paid for; only the training on it becomes cheaper.",
            "Kept responses of a prompt may be all good or all bad: advantages no longer sum to 0. Without its schedule it "
            "over-fits late (the paper's D2S).",
        ),
    )
)
