"""The user's own file of models, named on the command line or in a call, never by a configuration."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from pathlib import Path

from limbeck.errors import ConfigError


def load_user_file(path: str | Path) -> dict[str, object]:
    """Run a Python file and list what it defines.

    This runs the file: only ever call it with a path that the person at the keyboard has named.

    Args:
        path: a Python file, `my_models.py`.

    Returns:
        Its public functions and classes as `my_models.name`. Public are the names of `__all__` or, without one, those
        that the file itself defines and that do not begin with an underscore.

    Raises:
        ConfigError: where there is no such file, it is not Python, it fails, or it defines nothing public.
    """
    file = Path(path).expanduser().resolve()
    if not file.is_file():
        raise ConfigError(f"there is no file {file}: expected the Python file that defines your models")
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise ConfigError(f"{file} is not a Python module: expected a name such as my_models.py")
    # A name of its own, so that a file called json.py hides nobody's json.
    name = f"limbeck_user_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up while it is being run.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{file} fails when run: {type(error).__name__}: {error}") from error
    public = getattr(module, "__all__", None)
    names = public if public is not None else [n for n in vars(module) if not n.startswith("_")]
    found: dict[str, object] = {
        f"{file.stem}.{attribute}": value
        for attribute in names
        if (inspect.isfunction(value := getattr(module, attribute, None)) or inspect.isclass(value))
        and (public is not None or value.__module__ == name)
    }
    if not found:
        raise ConfigError(f"{file} defines no public function or class")
    return found
