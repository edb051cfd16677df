"""The record of corrections: what every training sample was told, how far that is from its label, and by which rule."""

from limbeck.ledgers.columns import EPOCHS, RANKS, SCHEMA
from limbeck.ledgers.heard import overhear
from limbeck.ledgers.ledger import Ledger, ledger_file, runs_in
from limbeck.ledgers.targets import EDITS
from limbeck.ledgers.weights import Weights, sample_weights

__all__ = [
    "EDITS",
    "EPOCHS",
    "RANKS",
    "SCHEMA",
    "Ledger",
    "Weights",
    "ledger_file",
    "overhear",
    "runs_in",
    "sample_weights",
]
