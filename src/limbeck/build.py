"""From a checked configuration to the data it names. Numpy and pyarrow only: torch where groups are to be found."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from limbeck.config import PilotConfig
from limbeck.config_data import ArrayData, DataSection, Discovered, ImageData, Injection, NamedData, TableData
from limbeck.errors import ConfigError, DataError, unknown_name

if TYPE_CHECKING:
    from limbeck.data import Data
    from limbeck.groups import Discovery

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_CREATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "coloured": ("colour", "aligned"),
        "background_patch": ("colour", "aligned"),
        "shortcut": ("shortcut", "aligned"),
    }
)
"""The attributes that an injection adds."""

_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def build_data(config: PilotConfig | DataSection) -> Data:
    """Load the data that a configuration names, put its injections into them, and find its groups where it asks for it.

    Args:
        config: a checked configuration, or its `data` section.

    Raises:
        ConfigError: for an option that the data set or the injection does not have.
        DataError: for data that cannot be used.
    """
    section = config.data if isinstance(config, PilotConfig) else config
    if isinstance(section.groups, Discovered):
        data = build_data(section.model_copy(update={"groups": None}))
        return discover(section.groups, data).apply(data)
    created = {attribute for injection in section.inject for attribute in _CREATES.get(injection.kind, ())}
    groups = section.groups or ()
    # Injections may need groups (noise by group) or make the attribute that groups are declared over (a shortcut).
    before = tuple(column for column in groups if column not in created)
    data = _load(section, before or None)
    for attribute, values in section.merge.items():
        data = data.merge_values(attribute, values)
    for index, injection in enumerate(section.inject):
        data = _inject(data, injection, f"data.inject[{index}]")
        if data.groups is None or len(data.groups.columns) < len(groups):
            known = {"label", data.label_name, *data.attributes}
            data = data.with_groups(list(groups)) if groups and known.issuperset(groups) else data
    return data


def discover(section: Discovered, data: Data) -> Discovery:
    """Find groups as a configuration describes it; the same description and data give the same groups.

    Raises:
        ConfigError: for an option that the method does not have, or a model of the user's own.
        DataError: where the data lack what the method looks at.
    """
    from limbeck.discovery import TRAINING, discover_groups

    model = None
    if section.model is not None:
        from limbeck.models import build

        spec = section.model
        if "." in spec.name and "/" not in spec.name:
            known = "name one that comes with limbeck, such as {name: mlp, hidden: [64]}"
            raise ConfigError(f"data.groups.model: {spec.name!r} is of a file of your own; {known}")
        model = partial(build, spec, inputs_shape=data.sample_shape, classes=data.num_classes)
    training = TRAINING if section.epochs is None else replace(TRAINING, epochs=section.epochs)
    return discover_groups(
        data,
        section.discover,
        model,
        seed=section.seed,
        training=training,
        folds=section.folds,
        repeats=section.repeats,
        minimum=section.minimum,
        **section.options,
    )


def table_like(config: PilotConfig, data: Data, path: str | Path) -> Data:
    """Another table, read as the configuration reads its own and encoded as its training rows were; all of it is test.

    Args:
        config: the configuration of a table.
        data: what `build_data` made of it.
        path: a CSV or Parquet file with the same columns.

    Raises:
        ConfigError: where the configuration's data are no table.
        DataError: for a table that cannot be used.
    """
    from limbeck.data import Data

    if not isinstance(config.data, TableData):
        raise ConfigError(f"{path} is a table, and this configuration's data are not: give a configuration instead")
    own = ("table", "id", "split", "fractions", "seed", "classes")
    said = {key: value for key, value in config.data.said.items() if key not in own}
    groups = said.get("groups")
    if isinstance(groups, Discovered):
        said["groups"] = None
    found = Data.from_table(Path(path), **said, split="test", classes=data.classes, encoder=data.encoder)
    # The rule that found the groups is learned again: the same description and data give the same one.
    return found.with_groups(discover(groups, data).assign(found)) if isinstance(groups, Discovered) else found


def _load(section: DataSection, groups: tuple[str, ...] | None) -> Data:
    from limbeck.data import Data, load

    said = {key: value for key, value in section.said.items() if key != "groups"}
    if groups:
        said["groups"] = list(groups)
    match section:
        case NamedData():
            options = {**said.pop("options", {}), **{key: value for key, value in said.items() if key != "name"}}
            return load(section.name, **options)
        case TableData():
            return Data.from_table(said.pop("table"), **said)
        case ArrayData():
            names = {"y": said.pop("label")} if "label" in said else {}
            if groups and len(groups) == 1 and groups[0] not in ("label", *section.attributes):
                # One array that is no attribute holds the numbers of the groups.
                said["groups"] = groups[0]
            return Data.from_npz(said.pop("npz"), **names, **said)
        case ImageData():
            folder, table = said.pop("images"), said.pop("table", None)
            if table is None:
                table = image_table(folder)
                said |= {"file": "file", "label": "label", "split": "split" if "split" in table else None}
            return Data.from_images(folder, table, **said)
    raise ConfigError(f"data of the kind {type(section).__name__} cannot be loaded")


def image_table(folder: Path) -> dict[str, list[str]]:
    """The table that the layout of a folder of images stands for.

    `<class>/image` gives the columns file and label; `train/<class>/image`, with `test` and perhaps `validation` beside
    it, gives the column split as well.

    Raises:
        DataError: where there are no images in such a layout.
    """
    paths = sorted(
        path.relative_to(folder)
        for path in folder.rglob("*")
        if path.suffix.lower() in IMAGE_ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    tops = {path.parts[0].lower() for path in paths if len(path.parts) > 1}
    split = bool(tops) and tops <= set(_SPLIT_FOLDERS)
    depth = 2 if split else 1
    shallow = [path for path in paths if len(path.parts) <= depth]
    if not paths or shallow:
        found = f"found {shallow[0]}" if shallow else "found no image"
        layout = "train/<class>/<image>" if split else "<class>/<image>"
        raise DataError(f"{folder}: {found}, expected images as {layout}; or name a table with a column of file names")
    columns = {
        "file": [path.as_posix() for path in paths],
        "label": [path.parts[depth - 1] for path in paths],
    }
    if split:
        columns["split"] = [_SPLIT_FOLDERS[path.parts[0].lower()] for path in paths]
    return columns


def _inject(data: Data, injection: Injection, where: str) -> Data:
    from limbeck.data import inject

    function: Callable[..., Data] = getattr(inject, injection.kind)
    _check_options(function, injection.options, where)
    return function(data, **injection.options)


def _check_options(function: Callable[..., object], options: Mapping[str, Any], where: str) -> None:
    """Refuse an option that the function does not take, and say which required one is missing."""
    _, *parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters]
    for option in options:
        if option not in known:
            raise ConfigError(f"{where}: {unknown_name('option', option, known)}")
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in options:
            raise ConfigError(f"{where}: the option {parameter.name!r} is missing")
