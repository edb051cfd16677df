"""Who is wrong, the teacher or the label? What copying a teacher can reach, which labels look wrong, which recipe fits.

`audit` is the way in. Its parts are functions of arrays and can be used alone: `estimate_noise`, `suspicious`, `guard`.
"""

from limbeck.audits.advice import Advice, AdviceCheck, advise, check_advice
from limbeck.audits.cap import Cap, GroupVerdict, Reach, measure_cap
from limbeck.audits.crossfit import CrossFitted, cross_fit, fit_temperature
from limbeck.audits.gates import GATES, Finding, Gate, Measured, findings
from limbeck.audits.guard import Cell, Guarded, guard
from limbeck.audits.honesty import Honesty, check_honesty
from limbeck.audits.labels import LabelAudit, audit_labels
from limbeck.audits.noise import GroupNoise, NoiseEstimate, estimate_noise
from limbeck.audits.ranking import Suspicion, confident_flags, label_posterior, label_score, suspicious
from limbeck.audits.teacher import Relation, Slice, TeacherAudit
from limbeck.audits.trial import Trial, Tried, run_trial
from limbeck.audits.whole import Audit, audit

__all__ = [
    "GATES",
    "Advice",
    "AdviceCheck",
    "Audit",
    "Cap",
    "Cell",
    "CrossFitted",
    "Finding",
    "Gate",
    "GroupNoise",
    "GroupVerdict",
    "Guarded",
    "Honesty",
    "LabelAudit",
    "Measured",
    "NoiseEstimate",
    "Reach",
    "Relation",
    "Slice",
    "Suspicion",
    "TeacherAudit",
    "Trial",
    "Tried",
    "advise",
    "audit",
    "audit_labels",
    "check_advice",
    "check_honesty",
    "confident_flags",
    "cross_fit",
    "estimate_noise",
    "findings",
    "fit_temperature",
    "guard",
    "label_posterior",
    "label_score",
    "measure_cap",
    "run_trial",
    "suspicious",
]
