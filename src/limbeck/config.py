"""The configuration file of a pilot: what it may say, checked in full before anything runs.

A configuration is data: it names models, recipes and files, and never imports or runs anything. All problems of a file
are reported at once, each with its line. Checking one imports neither torch nor numpy.

A pilot has one data set and one student (`PilotConfig`). A file that names several (`MatrixConfig`) is a pilot for each
pair of them, and each of these is a configuration of its own.

Paths in a configuration are relative to the file it stands in, except `output`, which is relative to the working
directory, like any other place a command writes to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic_core import InitErrorDetails

from limbeck.config_data import DataField
from limbeck.errors import ConfigError, unknown_name
from limbeck.models.spec import ModelField
from limbeck.place import Place
from limbeck.plain import PlainFile, parse_plain, read_plain
from limbeck.validation import (
    Count,
    FromList,
    InputFile,
    Natural,
    Problem,
    Section,
    Text,
    Texts,
    described,
    details,
    problem,
    problem_at,
    problems,
    refuse,
)

if TYPE_CHECKING:
    from limbeck.pilots.search import Search

EXAMPLE_PREFIX = "example:"

# Recipes --------------------------------------------------------------------------------------------------------------


class RecipeEntry(Section):
    """One recipe to try: a preset with options (`recipe`), or one of the file's own (`terms` and more).

    Attributes:
        name: how tables call it; the preset's name where none is given.
        recipe: the preset.
        teacher: the teachers it learns from.
    """

    model_config = ConfigDict(extra="allow")
    name: Text | None = None
    recipe: Text | None = None
    teacher: Texts | None = None

    @property
    def label(self) -> str:
        """How tables call it."""
        return cast(str, self.name or self.recipe)

    @property
    def teachers(self) -> tuple[str, ...]:
        """The keys of the teachers it names."""
        return self.teacher or ()

    @property
    def settings(self) -> dict[str, Any]:
        """Plain data for `limbeck.recipe`: everything but the teachers."""
        named = {"name": self.name} if self.name else {}
        preset = {"recipe": self.recipe} if self.recipe else {}
        return {**preset, **named, **(self.model_extra or {})}

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        extra = self.model_extra or {}
        if self.recipe and "terms" in extra:
            raise problem("is both the preset 'recipe' and its own 'terms': expected one of them")
        if not self.recipe and "terms" not in extra:
            raise problem("expected 'recipe' (the name of a preset), or 'name' and 'terms' of a recipe of your own")
        if not self.recipe and not self.name:
            raise problem("a recipe of your own needs a 'name'")
        if "terms" in extra:
            _check_terms(extra["terms"])
        return self


def _check_terms(terms: object) -> None:
    if not isinstance(terms, list) or not terms:
        raise problem(f"terms: found {described(terms)}, expected a list of at least one term")
    for index, term in enumerate(terms):
        if not (isinstance(term, str) or (isinstance(term, Mapping) and isinstance(term.get("term"), str))):
            expected = "expected the name of a term, or a mapping with the key 'term'"
            raise problem(f"terms[{index}]: found {described(term)}, {expected}")


def _parse_recipe(value: object, info: ValidationInfo) -> RecipeEntry:
    if isinstance(value, RecipeEntry):
        return value
    if isinstance(value, str):
        value = {"recipe": value}
    if not isinstance(value, Mapping):
        raise problem(f"found {described(value)}, expected the name of a recipe, or a mapping")
    return RecipeEntry.model_validate(dict(value), context=info.context)


RecipeField = Annotated[RecipeEntry, PlainValidator(_parse_recipe)]


# Training -------------------------------------------------------------------------------------------------------------

Positive = Annotated[float, Field(gt=0)]


def _check_augmentation(value: object) -> object:
    if isinstance(value, str):
        return value
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise problem(
            f"found {described(value)}, expected the name of an augmentation, or a mapping with the key 'name'"
        )
    return dict(value)


Augmentation = Annotated[Any, PlainValidator(_check_augmentation)]
"""One of `limbeck.views`: its name, or a mapping with its name and settings."""


def _check_views(value: object) -> object:
    if value != "online" and not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        raise problem(f"found {described(value)}, expected 'online', or how many views of each sample")
    return value


ViewCount = Annotated[int | str, PlainValidator(_check_views)]
"""How many ways there are to see an image."""


class Training(Section):
    """How a model is trained: the same for every recipe, so that the recipes are what differs.

    Attributes:
        augment: what happens to training images; see `limbeck.views`.
        views: how many ways there are to see each image: a number, or `online`, a new one each epoch.
    """

    epochs: Count = 10
    batch_size: Count = 256
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    schedule: Literal["cosine", "constant", "step", "exponential"] = "cosine"
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    compile: Literal["auto"] | Annotated[bool, Field(strict=True)] = False
    teacher_memory: Annotated[float, Field(ge=0)] = 2.0
    clip: Positive | None = None
    augment: Annotated[tuple[Augmentation, ...], Field(min_length=1), FromList] | None = None
    views: ViewCount | None = None

    @model_validator(mode="after")
    def _views_of_something(self) -> Self:
        # A teacher's changes may say one of the two, and take the other from the student's training.
        if self.views is not None and self.augment is None and not isinstance(self, TrainingChanges):
            raise problem("views without an augmentation would all be alike: add 'augment', such as augment: [flip]")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of `limbeck.Training`."""
        found = self.model_dump()
        augment, views = found.pop("augment"), found.pop("views")
        if augment is not None:
            found["views"] = {"augment": augment} | ({} if views is None else {"views": views})
        return found

    def updated(self, changes: TrainingChanges) -> Training:
        """These settings with those that `changes` names replaced."""
        return self.model_copy(update=changes.model_dump(exclude_unset=True))


class TrainingChanges(Training):
    """Settings of a teacher that differ from the student's; only what is written counts."""

    def plain(self) -> dict[str, Any]:
        """Only what is written."""
        return {key: value for key, value in super().plain().items() if key in self.model_fields_set}


# Teachers -------------------------------------------------------------------------------------------------------------


class TeacherSection(Section):
    """Where a teacher comes from: trained here (`model`, `recipe`), or finished (`weights`, `table`, `onnx`).

    Attributes:
        model: its network; with `weights` it is used as it is, otherwise trained first.
        recipe: how it is trained; a recipe without a teacher.
        training: what differs from the student's training.
        weights: a safetensors file of the finished `model`.
        table: a Parquet or CSV file of its probabilities by sample id.
        onnx: an ONNX file.
        data: of several data sets, those that it teaches; all where nothing is said.
    """

    model: ModelField | None = None
    recipe: RecipeField | None = None
    training: TrainingChanges | None = None
    weights: InputFile | None = None
    table: InputFile | None = None
    onnx: InputFile | None = None
    data: Texts | None = None

    @property
    def trained_here(self) -> bool:
        """Whether the pilot trains it."""
        return self.model is not None and self.weights is None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        sources = [key for key in ("model", "table", "onnx") if getattr(self, key) is not None]
        if self.weights is not None and self.model is None:
            raise problem("weights need the model they belong to: add 'model'")
        if len(sources) != 1:
            found = " and ".join(sources) if sources else "none"
            raise problem(f"a teacher has one source, model, table or onnx: found {found}")
        if not self.trained_here:
            for key in ("recipe", "training"):
                if getattr(self, key) is not None:
                    raise problem(f"this teacher is finished, so there is nothing to train: remove {key!r}")
        if self.recipe is not None and self.recipe.teachers:
            raise problem("a teacher's recipe cannot have a teacher of its own: use a recipe without one")
        return self


# Search ---------------------------------------------------------------------------------------------------------------


class RangeSection(Section):
    """Numbers between two limits, by factors where `log` is true."""

    low: float
    high: float
    log: bool = False


def _check_space(value: object, info: ValidationInfo) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        raise problem(f"found {described(value)}, expected values by setting, such as {{temperature: [2, 4]}}")
    found: dict[str, Any] = {}
    for name, choices in value.items():
        if isinstance(choices, Mapping):
            found[str(name)] = RangeSection.model_validate(dict(choices), context=info.context).plain()
        elif isinstance(choices, (list, tuple)) and choices:
            found[str(name)] = list(choices)
        else:
            raise problem(f"{name}: found {described(choices)}, expected a list of values, or low and high")
    return found


class SearchSection(Section):
    """Settings to be chosen on validation before the seeds are run; see `limbeck.pilots.Search`.

    Attributes:
        space: values, or low and high, by setting.
        halve_after: epochs after which only the better settings of a recipe go on; all finish where nothing is said.
        keep: the share that goes on.
    """

    space: Annotated[dict[str, Any], PlainValidator(_check_space)]
    method: Literal["grid", "random", "optuna"] = "grid"
    trials: Count | None = None
    seed: Natural = 0
    halve_after: Count | None = None
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.5

    def built(self) -> Search:
        """The search that this describes."""
        from limbeck.pilots.search import Range, Search

        space = {
            name: Range(**choices) if isinstance(choices, dict) else tuple(choices)
            for name, choices in self.space.items()
        }
        return Search(space, self.method, self.trials, self.seed, self.halve_after, self.keep)


# The whole ------------------------------------------------------------------------------------------------------------

Seed = Annotated[int, Field(ge=0, lt=2**31)]
Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""A name that is also one of a folder."""


class PilotSettings(Section):
    """What a pilot says beside its data and its student.

    Attributes:
        name: how the report calls it.
        teachers: by the key that recipes name them with.
        selection: which epoch's student is kept: the best in its worst group, worst class or on average, that of the
            smallest gap between classes, or the last; by worst group where groups are declared, else on average, where
            nothing is said.
        search: of settings, on validation; none where nothing is said.
        output: the run folder, relative to the working directory; `runs/<name>` where none is given.
    """

    name: Key = "pilot"
    teachers: dict[Key, TeacherSection] = Field(default_factory=dict)
    recipes: Annotated[tuple[RecipeField, ...], Field(min_length=1), FromList]
    training: Training = Field(default_factory=Training)
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1), FromList] = (0, 1, 2)
    selection: Literal["worst_group", "worst_class", "class_gap", "average", "last"] | None = None
    search: SearchSection | None = None
    output: Text | None = None

    @property
    def output_folder(self) -> Path:
        """Where results go."""
        return Path(self.output) if self.output else Path("runs") / self.name

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every default written out, every path absolute: what a run folder keeps."""
        found = self.plain()
        return {key: found.pop(key) for key in _ORDER if key in found} | found

    def training_of(self, teacher: str) -> Training:
        """How a teacher is trained."""
        changes = self.teachers[teacher].training
        return self.training if changes is None else self.training.updated(changes)

    @model_validator(mode="wrap")
    @classmethod
    def _consistent(cls, value: object, handler: ModelWrapValidatorHandler[Self]) -> Self:
        # Looked for in what was written, so that a mistyped teacher is told beside a mistyped epoch.
        found = cls._contradictions(value) if isinstance(value, Mapping) else []
        try:
            config = handler(value)
        except ValidationError as error:
            refuse(cls.__name__, [*details(error), *found])
            raise
        refuse(cls.__name__, found)
        return config

    @classmethod
    def _contradictions(cls, values: Mapping[str, Any]) -> list[InitErrorDetails]:
        """What no section sees alone."""
        return _contradictions(values)


class PilotConfig(PilotSettings):
    """A pilot: data, teachers, one student, the recipes to try on it, and how often.

    Attributes:
        data: of every training.
        student: the model every recipe trains.
    """

    data: DataField
    student: ModelField

    @classmethod
    def _contradictions(cls, values: Mapping[str, Any]) -> list[InitErrorDetails]:
        found = super()._contradictions(values)
        for key, section in _mapping(values.get("teachers")).items():
            if isinstance(section, Mapping) and section.get("data") is not None:
                message = "says which of several data sets it teaches, and there is one: remove 'data'"
                found.append(problem_at(("teachers", key, "data"), message, section["data"]))
        return found


class MatrixConfig(PilotSettings):
    """Pilots of the same recipes, settings and seeds: one for each of several data sets, students, or both.

    Attributes:
        data, datasets: one data set, or several by name.
        student, students: one student, or several by name.
    """

    data: DataField | None = None
    datasets: Annotated[dict[Key, DataField], Field(min_length=1)] | None = None
    student: ModelField | None = None
    students: Annotated[dict[Key, ModelField], Field(min_length=1)] | None = None

    def pilots(self) -> dict[Place, PilotConfig]:
        """The configuration of each pilot, by its data set and student, the students of a data set one after another.

        Each is whole: run alone, it gives what it gives here.
        """
        found: dict[Place, PilotConfig] = {}
        plain = self.to_dict()
        every = {key: plain.pop(key, None) for key in ("data", "datasets", "student", "students")}
        datasets = every["datasets"] or {None: every["data"]}
        students = every["students"] or {None: every["student"]}
        for data, student in product(datasets, students):
            place = Place(data, student)
            teachers = {key: dict(section) for key, section in plain["teachers"].items() if self.teaches(key, data)}
            for section in teachers.values():
                section.pop("data", None)
            own = {"data": datasets[data], "student": students[student], "teachers": teachers}
            own["recipes"] = [_with_teachers(recipe, teachers) for recipe in plain["recipes"]]
            own["name"] = "-".join([self.name, *place.parts])[:_LONGEST]
            own["output"] = str(self.output_folder / place.path)
            found[place] = PilotConfig.model_validate({**plain, **own}, context={"folder": Path()})
        return found

    def teaches(self, teacher: str, data: str | None) -> bool:
        """Whether a teacher is one of a data set's."""
        named = self.teachers[teacher].data
        return named is None or data in named

    @classmethod
    def _contradictions(cls, values: Mapping[str, Any]) -> list[InitErrorDetails]:
        found = super()._contradictions(values)
        for one, several in (("data", "datasets"), ("student", "students")):
            given = [key for key in (one, several) if values.get(key) is not None]
            if len(given) != 1:
                text = f"both {one!r} and {several!r} are given" if given else f"neither {one!r} nor {several!r} is"
                found.append(problem_at((several,), f"{text}: expected one of them", values.get(several)))
            found += _alike(several, _mapping(values.get(several)))
        return found + _of_datasets(values)


_LONGEST = 64
_ORDER = ("name", "data", "datasets", "teachers", "student", "students")
"""Of the keys of a configuration; the rest follow as they are declared."""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _with_teachers(recipe: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with those of its teachers that there are."""
    if not recipe.get("teacher"):
        return dict(recipe)
    return {**recipe, "teacher": [teacher for teacher in recipe["teacher"] if teacher in known]}


def _as_list(value: object) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _contradictions(values: Mapping[str, Any]) -> list[InitErrorDetails]:
    """What no section sees alone: a recipe whose teacher is not declared, two of one name, a seed that stands twice."""
    found: list[InitErrorDetails] = []
    teachers, seeds = values.get("teachers"), values.get("seeds")
    known = [str(key) for key in teachers] if isinstance(teachers, Mapping) else []
    names: dict[str, int] = {}
    for index, entry in _recipe_entries(values):
        for teacher in _as_list(entry.get("teacher")):
            if isinstance(teacher, str) and teacher not in known:
                near = unknown_name("teacher", teacher, known)
                message = near if known else f"unknown teacher {teacher!r}: no teachers are declared"
                found.append(problem_at(("recipes", index, "teacher"), message, teacher))
        label = entry.get("name") or entry.get("recipe")
        if isinstance(label, str):
            if label in names:
                message = f"called {label!r} like recipes[{names[label]}]: give one of them another 'name'"
                found.append(problem_at(("recipes", index), message, label))
            names.setdefault(label, index)
    if isinstance(seeds, (list, tuple)):
        twice = [seed for index, seed in enumerate(seeds) if seed in seeds[:index]]
        if twice:
            message = f"{described(twice[0])} stands twice: one run would count as two"
            found.append(problem_at(("seeds",), message, twice[0]))
    return found


def _recipe_entries(values: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The recipes that are mappings or names, with their places."""
    recipes = values.get("recipes")
    found = []
    for index, recipe in enumerate(recipes if isinstance(recipes, (list, tuple)) else ()):
        entry = {"recipe": recipe} if isinstance(recipe, str) else recipe
        entry = entry.plain() if isinstance(entry, RecipeEntry) else entry
        if isinstance(entry, Mapping):
            found.append((index, entry))
    return found


def _alike(key: str, entries: Mapping[str, Any]) -> list[InitErrorDetails]:
    """Two names for the same thing: one pilot would count as two."""
    kind = "data set" if key == "datasets" else "student"
    plain = [(name, {"name": entry} if isinstance(entry, str) else entry) for name, entry in entries.items()]
    found = []
    for place, (name, entry) in enumerate(plain):
        twin = next((other for other, theirs in plain[:place] if theirs == entry), None)
        if twin is not None:
            found.append(problem_at((key, name), f"the same {kind} as {twin!r}: one pilot would count as two", name))
    return found


def _of_datasets(values: Mapping[str, Any]) -> list[InitErrorDetails]:
    """Teachers of data sets that are not declared, finished ones of nobody knows which, and recipes without any."""
    found: list[InitErrorDetails] = []
    datasets, teachers = _mapping(values.get("datasets")), _mapping(values.get("teachers"))
    of: dict[str, list[Any]] = {}
    for key, section in teachers.items():
        named = _as_list(section.get("data")) if isinstance(section, Mapping) else []
        of[key] = named or list(datasets)
        if named and not datasets:
            message = "says which of several data sets it teaches, and there is one: remove 'data'"
            found.append(problem_at(("teachers", key, "data"), message, named))
            continue
        for name in named:
            if isinstance(name, str) and name not in datasets:
                message = unknown_name("data set", name, list(map(str, datasets)))
                found.append(problem_at(("teachers", key, "data"), message, name))
        finished = isinstance(section, Mapping) and any(section.get(kind) for kind in ("weights", "table", "onnx"))
        if finished and not named and len(datasets) > 1:
            message = f"is finished, so it knows one data set: say which, such as data: {next(iter(datasets))}"
            found.append(problem_at(("teachers", key), message, section))
    for index, entry in _recipe_entries(values):
        asked = [teacher for teacher in _as_list(entry.get("teacher")) if teacher in of]
        for name in datasets:
            if asked and not any(name in of[teacher] for teacher in asked):
                message = (
                    f"none of its teachers is one of the data set {name!r}: name one, or leave 'teacher' out, and each "
                    "data set has its own"
                )
                found.append(problem_at(("recipes", index, "teacher"), message, entry.get("teacher")))
    return found


# Reading --------------------------------------------------------------------------------------------------------------


def load_config(source: str | Path) -> PilotConfig:
    """Read and check the configuration of one data set and one student.

    Args:
        source: a YAML or JSON file, or `example:<name>` for one that comes with the library.

    Raises:
        ConfigError: listing every problem, each with its line where the file is YAML; or where it names several data
            sets or students.
    """
    return _one(load_plan(source), str(source))


def load_plan(source: str | Path) -> PilotConfig | MatrixConfig:
    """Read and check a configuration, of one pilot or of several data sets or students; arguments as `load_config`.

    Raises:
        ConfigError: listing every problem, each with its line where the file is YAML.
    """
    text = str(source)
    if text.startswith(EXAMPLE_PREFIX):
        name = text.removeprefix(EXAMPLE_PREFIX)
        return _checked(parse_plain(example_text(name), name=f"{name}.yaml"), folder=Path())
    path = Path(source).expanduser()
    if text in examples() and not path.exists():
        raise ConfigError(
            f"there is no file {path}: did you mean {EXAMPLE_PREFIX}{text}, which comes with the library?"
        )
    return _checked(read_plain(path), folder=path.resolve().parent)


def config_from_dict(values: Mapping[str, Any], *, folder: str | Path | None = None) -> PilotConfig:
    """Check a configuration given as plain data, of one data set and one student.

    Args:
        values: what the file would say.
        folder: where its relative paths begin; the working directory where none is given.

    Raises:
        ConfigError: listing every problem.
    """
    return _one(plan_from_dict(values, folder=folder), "configuration")


def plan_from_dict(values: Mapping[str, Any], *, folder: str | Path | None = None) -> PilotConfig | MatrixConfig:
    """Check a configuration given as plain data, of one pilot or of several; arguments as `config_from_dict`."""
    return _checked(PlainFile(dict(values), "configuration"), folder=Path(folder or ""))


def examples() -> tuple[str, ...]:
    """The names of the configurations that come with the library."""
    found = (entry.name for entry in (resources.files("limbeck") / "examples").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


def example_text(name: str) -> str:
    """The text of a configuration that comes with the library.

    Raises:
        ConfigError: where there is no such example.
    """
    if name not in examples():
        raise ConfigError(unknown_name("example", name, examples()))
    return (resources.files("limbeck") / "examples" / f"{name}.yaml").read_text(encoding="utf-8")


def _one(config: PilotConfig | MatrixConfig, source: str) -> PilotConfig:
    if isinstance(config, PilotConfig):
        return config
    raise ConfigError(
        f"{source} names several data sets or students, and one of each is expected here: limbeck pilot runs them all, "
        f"and leaves the configuration of each in its folder, such as "
        f"{config.output_folder / next(iter(config.pilots())).path / 'config.yaml'}"
    )


def _checked(file: PlainFile, *, folder: Path) -> PilotConfig | MatrixConfig:
    if not isinstance(file.values, Mapping):
        raise ConfigError(f"{file.name}: found {described(file.values)}, expected a mapping with the key 'data'")
    several = "datasets" in file.values or "students" in file.values
    kind: type[PilotConfig] | type[MatrixConfig] = MatrixConfig if several else PilotConfig
    try:
        return kind.model_validate(dict(file.values), context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(_told(file, problems(error))) from None


def _told(file: PlainFile, found: Sequence[Problem]) -> str:
    if len(found) == 1:
        line = file.line(found[0].path)
        return f"{file.name}{f', line {line}' if line else ''}: {found[0]}"
    rows = sorted((file.line(each.path) or 0, index, each) for index, each in enumerate(found))
    lines = [f"  {f'line {line}: ' if line else ''}{each}" for line, _, each in rows]
    return "\n".join([f"{file.name}: {len(found)} problems", *lines])
