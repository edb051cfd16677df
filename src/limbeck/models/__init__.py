"""Models from plain data: the built-in ones, any of timm, and those of a file the user names.

Nothing here is needed to use a model of one's own: `limbeck.fit` takes any `nn.Module`. This room exists so that a
configuration file can name a model without importing anything.

The names are loaded when first used, so that checking a configuration costs no torch import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.models.builders import build, parameters
    from limbeck.models.networks import CNN, MLP, CifarResNet, LinearClassifier
    from limbeck.models.saved import SavedModel, load_model, save_model
    from limbeck.models.spec import MODEL_NAMES, ModelSpec, check_model
    from limbeck.models.user import load_user_file
    from limbeck.models.weights import load_weights

_HOMES = {
    "CNN": "networks",
    "MLP": "networks",
    "CifarResNet": "networks",
    "LinearClassifier": "networks",
    "MODEL_NAMES": "spec",
    "ModelSpec": "spec",
    "check_model": "spec",
    "build": "builders",
    "load_user_file": "user",
    "SavedModel": "saved",
    "load_model": "saved",
    "load_weights": "weights",
    "parameters": "builders",
    "save_model": "saved",
}

__all__ = [
    "CNN",
    "MLP",
    "MODEL_NAMES",
    "CifarResNet",
    "LinearClassifier",
    "ModelSpec",
    "SavedModel",
    "build",
    "check_model",
    "load_model",
    "load_user_file",
    "load_weights",
    "parameters",
    "save_model",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
