"""TW-GRPO against GRPO with the token mean."""

from unipo.reproduce import Reproduction
from unipo.reproduce.claim import ACCURACY, AREA

REPRODUCTION = Reproduction(
    method="tw-grpo",
    claim="Weighing the places of a response by how much the group's next-token distributions differ there learns faster "
    "than weighing all tokens alike.",
    arms={"tw-grpo": "tw-grpo", "grpo": "tw-grpo[credit=[]]"},
    metrics=(AREA, ACCURACY),
    search={"lr": (1e-4, 2e-4, 4e-4)},
    select="area",
    notes="Only the weights differ between the arms; the paper's graded reward and its inverted questions are left out. "
    "Most tokens of these responses are certain, and a few decide. The extra pass per batch is not counted in the "
    "budget of sampled tokens.",
)
