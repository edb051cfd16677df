"""Distil small models that can be trusted in their worst case.

    import limbeck as lb

    data = lb.load("adult", groups=["label", "sex"])
    teacher = lb.fit(big, data, recipe="group_dro")
    student = lb.fit(small, data, teacher=teacher, recipe="groupdistil")
    print(lb.evaluate(student, data.test))

Names are loaded when first used, so that importing this package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from limbeck import data, groups, heads, models, probe, teachers, terms, testing, views, weighting
    from limbeck.arbitration import Arbitration, arbitrate
    from limbeck.audits import audit
    from limbeck.data import Data, load
    from limbeck.discovery import discover_groups
    from limbeck.errors import LimbeckError
    from limbeck.estimator import Distiller
    from limbeck.evaluation import evaluate
    from limbeck.fitting import fit
    from limbeck.ledgers import Ledger
    from limbeck.loop import Fitted
    from limbeck.pilots import MatrixResult, PilotResult, pilot
    from limbeck.predict import predict_logits
    from limbeck.presets import PRESETS
    from limbeck.probes import fit_probes
    from limbeck.recipe import Head, Identify, Recipe, Refit, Term, Weighting
    from limbeck.training import Training

_HOMES = {
    "Arbitration": "arbitration",
    "Data": "data",
    "Distiller": "estimator",
    "Fitted": "loop",
    "Head": "recipe",
    "Identify": "recipe",
    "Ledger": "ledgers",
    "LimbeckError": "errors",
    "MatrixResult": "pilots",
    "PRESETS": "presets",
    "PilotResult": "pilots",
    "Recipe": "recipe",
    "Refit": "recipe",
    "Term": "recipe",
    "Training": "training",
    "Weighting": "recipe",
    "arbitrate": "arbitration",
    "audit": "audits",
    "discover_groups": "discovery",
    "evaluate": "evaluation",
    "fit": "fitting",
    "fit_probes": "probes",
    "load": "data",
    "pilot": "pilots",
    "predict_logits": "predict",
}
_ROOMS = ("data", "groups", "heads", "models", "probe", "teachers", "terms", "testing", "views", "weighting")

__all__ = [
    "PRESETS",
    "Arbitration",
    "Data",
    "Distiller",
    "Fitted",
    "Head",
    "Identify",
    "Ledger",
    "LimbeckError",
    "MatrixResult",
    "PilotResult",
    "Recipe",
    "Refit",
    "Term",
    "Training",
    "Weighting",
    "arbitrate",
    "audit",
    "data",
    "discover_groups",
    "evaluate",
    "fit",
    "fit_probes",
    "groups",
    "heads",
    "load",
    "models",
    "pilot",
    "predict_logits",
    "probe",
    "teachers",
    "terms",
    "testing",
    "views",
    "weighting",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"limbeck.{_HOMES[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"limbeck.{name}")
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
