"""Hashes that tell one teacher from another: of weights, of settings, of any object made of plain parts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Set
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def fingerprint_of(*parts: object) -> str:
    """A hash (32 hexadecimal digits) of values, arrays, tensors and objects made of them.

    An object counts as its class and its state, so a scikit-learn model is hashed without being pickled. A part that
    gives no state (an extension type) counts by its class only. Classes count by name and not by where they are
    defined: a script's own class must be the same class when another script imports it.
    """
    digest = hashlib.blake2b(digest_size=16)
    _feed(digest, parts, ())
    return digest.hexdigest()


def module_fingerprint(module: nn.Module, *settings: object) -> str:
    """A hash of a module's architecture (its printed form), parameters, buffers and the given settings.

    Buffers that are not saved with the module count too: they shape its outputs.
    """
    state: dict[str, object] = dict(module.state_dict())
    state.update(module.named_buffers(remove_duplicate=False))
    # A printed function or object carries its address, which changes from one process to the next.
    architecture = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(module))
    return fingerprint_of(type(module).__qualname__, architecture, state, settings)


def _feed(digest: _Hash, value: object, above: tuple[int, ...]) -> None:
    """Tags and lengths go before contents, so that no two different structures give the same bytes."""
    match value:
        case None | bool() | int() | float() | str() | bytes():
            text = value if isinstance(value, bytes) else repr(value).encode()
            digest.update(f"{type(value).__name__}:{len(text)}:".encode())
            digest.update(text)
        case Tensor():
            _feed_tensor(digest, value)
        case np.ndarray() if value.dtype != object:
            digest.update(f"array:{value.dtype.str}:{value.shape}:".encode())
            digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        case np.ndarray():
            _feed(digest, value.tolist(), above)
        case np.generic():
            _feed(digest, value.item(), above)
        case _:
            _feed_structure(digest, value, above)


def _feed_tensor(digest: _Hash, value: Tensor) -> None:
    digest.update(f"tensor:{value.dtype}:{tuple(value.shape)}:".encode())
    plain = value.detach().cpu().contiguous().reshape(-1)
    digest.update(plain.view(torch.uint8).numpy().data)


def _feed_structure(digest: _Hash, value: Any, above: tuple[int, ...]) -> None:
    if id(value) in above:
        digest.update(f"above:{len(above) - above.index(id(value))}:".encode())
        return
    above = (*above, id(value))
    match value:
        case list() | tuple():
            digest.update(f"{type(value).__name__}:{len(value)}:".encode())
            for part in value:
                _feed(digest, part, above)
        case Mapping():
            digest.update(f"mapping:{len(value)}:".encode())
            for key in sorted(value, key=repr):
                _feed(digest, key, above)
                _feed(digest, value[key], above)
        case Set():
            digest.update(f"set:{len(value)}:".encode())
            for part in sorted(fingerprint_of(part) for part in value):
                digest.update(part.encode())
        case _ if hasattr(value, "__qualname__"):
            digest.update(f"name:{value.__qualname__}:".encode())
        case _:
            digest.update(f"object:{type(value).__qualname__}:".encode())
            _feed(digest, _state(value), above)


def _state(value: Any) -> object:
    if hasattr(value, "model_to_string"):  # a LightGBM booster keeps its trees behind a foreign pointer
        return value.model_to_string()
    if hasattr(value, "save_raw"):  # an XGBoost booster likewise
        return bytes(value.save_raw())
    try:
        return value.__getstate__()
    except Exception:
        return None
