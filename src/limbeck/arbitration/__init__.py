"""Who is wrong, the teacher or the label? One posterior over the true class decides it for every sample."""

from limbeck.arbitration.expected import ExpectedGroups, expected_groups, expected_minimum, expected_rule
from limbeck.arbitration.fitting import arbitrate
from limbeck.arbitration.judge import Judge
from limbeck.arbitration.model import candidates, posterior
from limbeck.arbitration.result import Arbitration, Judged

__all__ = [
    "Arbitration",
    "ExpectedGroups",
    "Judge",
    "Judged",
    "arbitrate",
    "candidates",
    "expected_groups",
    "expected_minimum",
    "expected_rule",
    "posterior",
]
