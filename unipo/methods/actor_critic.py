"""The policy and a value model, learned side by side."""

from unipo.method import Method, Paper
from unipo.parts.average import TokenMean
from unipo.parts.gae import GAE
from unipo.parts.objective import Clipped
from unipo.parts.selection import FreshTokens
from unipo.parts.source import OnPolicy, Windowed
from unipo.parts.token_shaping import KLPerToken, TruncatedReward
from unipo.parts.value import ValueLearning
from unipo.registry import register

ppo = register(
    Method(
        name="ppo",
        paper=Paper("Proximal Policy Optimization Algorithms", "1707.06347", "huggingface/trl"),
        summary="Token-level actor-critic: a value model, generalised advantages, and a clipped ratio.",
        source=OnPolicy(group_size=1, epochs=4),
        shaping=(KLPerToken(beta=0.05, estimator="k1"),),
        advantage=GAE(gamma=1.0, lam=0.95),
        objective=Clipped(low=0.2, high=0.2),
        average=TokenMean(),
        value=ValueLearning(clip=0.2, gamma=1.0, lam=0.95, learning_rate=1e-5),
        defaults={"learning_rate": 1e-6},
        notes=(
            "V(s_t) is read where token t is predicted, before it is written; after the last token it is 0.",
            "Rewards are r_t = -beta (log pi_old - log pi_ref), plus R on the last counted token; the value model's "
            "target is taken before advantages are whitened.",
            "A tool's tokens are passed over: they neither discount nor have a delta of their own (verl).",
            "beta, lam, epochs and both clips are TRL's. verl: shaping.0.beta=0.001, advantage.lam=1, value.lam=1, "
            "value.clip=0.5, source.epochs=1. OpenRLHF: shaping.0.beta=0.01, advantage.lam=1, value.lam=1, "
            "value.clip=0.5, source.epochs=1.",
            "advantage.lam and value.lam are separate settings; plain PPO has both alike.",
            "The value model has a backbone and an optimiser of its own, at verl's rates (1e-6 and 1e-5). "
            "value.shared=true and value.coefficient=0.1 put a head on the policy's backbone, in one optimiser.",
            "Its head starts at 0, so that the first batch's advantages are plain returns; value.pretrain=N lets it "
            "learn alone for N steps first.",
            "Options: shaping adds RewardClip() (OpenRLHF), MissingEndPenalty() (TRL); shaping.0.target adapts beta; "
            "objective.dual=3 bounds the loss of negative advantages (verl).",
        ),
        doubts=(
            "InstructGPT's exact whitening and reward normalisation; libraries differ in many details, none canonical.",
            "TRL's whitening of token rewards (off there by default) and stopping an epoch early on KL are not built.",
        ),
        limits=(
            "A second model is held, forwarded and trained beside the policy.",
            "With lam < 1 the value model's errors bias the advantages; while it says 0, early tokens get little credit.",
        ),
    )
)

t_ppo = register(
    ppo.but(
        name="t-ppo",
        paper=Paper("Truncated Proximal Policy Optimization", "2506.15050"),
        summary="PPO on windows of long responses; the value model learns only where the true return is known.",
        source=Windowed(group_size=1, window=0),
        selection=(FreshTokens(),),
        shaping=(TruncatedReward(0.0),),
        advantage=GAE(gamma=1.0, lam=0.95, goes_on="unfinished"),
        objective=Clipped(low=0.2, high=0.28),
        value=ValueLearning(clip=None, gamma=1.0, lam=1.0, finished=True, learning_rate=2e-6),
        defaults={"learning_rate": 1e-6},
        aliases=("truncated-ppo",),
        notes=(
            "`prompts` of the run is the size of the pool. A response that goes on has no reward yet; its last value "
            "stands for what follows (EGAE), so no state beyond the cut is evaluated.",
            "The policy learns from the tokens written at this step, each once; the value model from all tokens of the "
            "responses that ended at it, each once, towards their reward.",
            "A step at which nothing ended makes no value update (value/skipped).",
            "A response that used up the token budget gets the failure reward (shaping.0.value).",
            "The prefix of a response is computed anew at every step: the weights have changed.",
            "The value model starts at 0, and while it says 0 everywhere unfinished responses have advantage 0; whitening "
            "moves them all by the same, down where finished ones are paid. value.pretrain=N lets it learn alone for N "
            "steps first.",
            "The last tokens of a response that goes on have the noisiest advantages: LeaveWindowEnd(last=N), added to "
            "selection, leaves them out after the advantages are computed. They are not fresh at the next step, so they are never "
            "trained on.",
            "The paper has 16 responses per prompt (source.group_size=16); a prompt leaves when all of them have ended.",
            "With window >= the token budget this is PPO with lam 1 for the value model.",
        ),
        doubts=(
            "No code is public; token filter, lam values, the value clip and hyper-parameters are recalled.",
            "Whether advantages are standardised over the batch, as here (advantage.whiten=false leaves them).",
            "Whether the ratio's denominator for old tokens is recomputed: old tokens are not trained on here.",
        ),
        limits=(
            "While the value model says the same everywhere, unfinished responses tell nothing; its errors bias them later.",
            "Published on one model and one benchmark, without a study of the window.",
        ),
    )
)
