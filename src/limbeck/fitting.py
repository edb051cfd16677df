"""Fitting a student: what a recipe asks for before and after the loop."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.augment import Augmented, bind, check_teacher_views, teacher_by_view, views_for
from limbeck.callbacks import Callback
from limbeck.errors import CheckpointError, ConfigError, LimbeckError, RecipeError, unknown_name
from limbeck.heads import FeatureTap, TransplantedStudent, refit_dfr, replace_head, transplant, transplant_weights
from limbeck.loop import Fitted, Stage, restored, train_stage
from limbeck.modes import evaluating
from limbeck.predict import InputReader, batched_logits, call_model, logits_of
from limbeck.presets import as_recipe
from limbeck.recipe import Head, Recipe
from limbeck.selection import SelectionRule, selection_rule
from limbeck.teachers import ModuleTeacher, StoredTeacher, Teacher, as_teacher, collect
from limbeck.teachers import require as require_outputs
from limbeck.teachers.asking import Column, asked_columns, output_bytes
from limbeck.teachers.base import reads_inputs
from limbeck.training import Training, derive_seed
from limbeck.tuning import choose_teacher_ways, computed, teacher_ways

if TYPE_CHECKING:
    from limbeck.arbitration import Arbitration
    from limbeck.data import Data

COLLECTED = 1024
"""Samples a call where a teacher is asked about all of them at once."""


def fit(
    student: nn.Module | Callable[[], nn.Module],
    data: Data,
    *,
    teacher: Any = None,
    recipe: str | Mapping[str, Any] | Recipe = "erm",
    training: Training | None = None,
    seed: int = 0,
    selection: str | SelectionRule | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint: str | Path | None = None,
    resume: bool = False,
    arbitration: Arbitration | None = None,
    **settings: Any,
) -> Fitted:
    """Train a student.

    The modules passed in are never altered: a copy of the student is trained. Same arguments and seed, same bytes.

    Args:
        student: a module, which every seed starts from as it is, or a function that builds one, called under the seed.
        data: with a training and a validation part.
        teacher: a module, a fitted model, or any source of `limbeck.teachers.as_teacher`; a sequence for several.
        recipe: a preset's name, plain data or a `Recipe`.
        training: epochs, optimiser, augmentation (`views`) and the like; `settings` change single entries of it.
        seed: of the order of samples, of dropout and of what the recipe initialises.
        selection: which epoch is kept, on validation: by default `worst_group` with groups and `average` without.
        callbacks: told of every epoch.
        checkpoint: a folder in which the state is kept after each epoch.
        resume: go on from what `checkpoint` holds; the result is that of a straight run, byte for byte.
        arbitration: of these data, made before, in place of a new one; epochs are then selected by validation labels as
            the posterior has them, with any recipe.

    Returns:
        The student of the selected epoch.

    Raises:
        LimbeckError: where recipe, data, teacher and student do not fit each other, before any training.
    """
    started = time.perf_counter()
    training = _training(training, settings)
    recipe = as_recipe(recipe)
    groups = data.groups
    rule = selection_rule(selection, groups=groups is not None)
    source = None if teacher is None else as_teacher(teacher)
    warnings = recipe.check(
        classes=data.num_classes, groups=None if groups is None else groups.names, teacher=source is not None
    )
    data.check(groups_required=recipe.needs_groups)
    train = data.train
    named = named_error_set(recipe, train)
    if source is not None and recipe.teacher_outputs:
        require_outputs(source, recipe.teacher_outputs, by=f"recipe {recipe.name!r}")
        source.check(train, sorted(recipe.teacher_outputs))
    views = views_for(recipe, training.views, train, seed=seed)
    if source is not None and recipe.teacher_outputs:
        check_teacher_views(source, views)
    if resume and checkpoint is None:
        raise CheckpointError("resume=True needs checkpoint=FOLDER: where the state of the interrupted run is")
    folder = None if checkpoint is None else Path(checkpoint)
    if recipe.choose is not None:
        from limbeck.choosing import choose

        more: dict[str, Any] = {"training": training, "seed": seed, "callbacks": callbacks, "resume": resume}
        return choose(fit, student, data, source, recipe, arbitration, folder, rule, **more)
    columns: dict[str, Tensor] = {}
    posterior: dict[str, Any] = {}
    if recipe.arbitrate is not None or arbitration is not None:
        arbitration, rule, columns, posterior = _arbitrated(recipe, data, source, seed, arbitration, rule)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "student"))
        initial = own_copy(student)
        check_student(initial, data)
        key = {
            "recipe": recipe.to_dict(),
            "training": training.to_dict() | {"precision": "any", "compile": "any"},
            "data": data.fingerprint(),
            "teacher": None if source is None else source.fingerprint(),
            "seed": seed,
            "selection": rule.name,
            "student": _digest(initial),
        }
        if arbitration is not None:
            key["arbitration"] = arbitration.fingerprint()

        def run(name: str, model: nn.Module, what: Recipe, by: Teacher | None, **more: Any) -> Fitted:
            extra = posterior | more.pop("context", {})
            stage_training = more.pop("training", training)
            path = None if folder is None else folder / f"{name.replace(' ', '-')}.safetensors"
            stage_key = {**key, "stage": name}
            saved = restored(path, stage_key) if resume and path is not None else None
            ways = None if saved is None else saved[1]["teacher_ways"]
            stage = prepare_stage(
                name, model, what, stage_training, data, train, seed, more.pop("rule", rule), by, extra, stage_key, ways
            )
            warnings.extend(note for note in stage.notes if note not in warnings)
            stage.callbacks, stage.checkpoint, stage.saved = callbacks, path, saved
            stage.teacher_fields = [{**columns, **fields} for fields in stage.teacher_fields]
            stage.record_errors = more.pop("record_errors", False)
            return train_stage(stage)

        earlier: dict[str, Fitted] = {}
        details: dict[str, Any] = {}
        context: dict[str, Any] = {}
        if recipe.arbitrate is not None and arbitration is not None:
            details["arbitration"] = arbitration.to_dict()
        if recipe.identify is not None and recipe.identify.trains:
            short = replace(training, epochs=recipe.identify.epochs, schedule="constant")
            biased = run(
                "identify",
                initial,
                as_recipe("erm"),
                None,
                training=short,
                rule=selection_rule("last", groups=False),
                record_errors=recipe.identify.source == "online",
            )
            earlier["identify"] = biased
            context["error_set"] = find_error_set(biased, train, recipe.identify.source)
        elif named is not None:
            context["error_set"] = named
        if "error_set" in context:
            details["error_set"] = describe_error_set(context["error_set"], train)
        if recipe.rounds > 1 and source is None:
            earlier["round 1"] = run("round 1", initial, as_recipe("erm"), None)
            source = as_teacher(earlier["round 1"])
        for number in range(2, recipe.rounds):
            name = f"round {number}"
            earlier[name] = run(name, starting_model(initial, source, recipe), recipe, source, context=context)
            source = as_teacher(earlier[name])
        fitted = run("student", starting_model(initial, source, recipe), recipe, source, context=context)
        if recipe.refit is not None:
            fitted.model, details["refit"] = refit_last_layer(fitted.model, data, recipe, seed)
    fitted.recipe, fitted.earlier, fitted.details, fitted.warnings = recipe, earlier, details, warnings
    fitted.arbitration = arbitration if recipe.arbitrate is not None else None
    fitted.seconds = time.perf_counter() - started
    return fitted


# Before training ----------------------------------------------------------------------------------------------------


def _training(training: Training | None, settings: Mapping[str, Any]) -> Training:
    names = [entry.name for entry in fields(Training)]
    for name in settings:
        if name not in names:
            raise ConfigError("fit: " + unknown_name("setting", name, names))
    return replace(training or Training(), **settings)


def _arbitrated(
    recipe: Recipe, data: Data, source: Teacher | None, seed: int, given: Arbitration | None, rule: SelectionRule
) -> tuple[Arbitration, SelectionRule, dict[str, Tensor], dict[str, Any]]:
    """The arbitration, the rule of selection as it reads validation labels, and what the loop takes from it."""
    from limbeck.arbitration import arbitrate, expected_groups, expected_rule

    if given is None:
        given = arbitrate(data, source, **vars(recipe.arbitrate), seed=seed)
    if given.validation is not None:
        rule = expected_rule(rule, expected_groups(given, data))
    if recipe.arbitrate is None:
        return given, rule, {}, {}
    targets, mass = given.student_targets(recipe.arbitrate.gamma)
    rows = given.select(data.train.ids)
    columns = {"targets": torch.from_numpy(targets[rows].astype(np.float32))}
    return given, rule, columns, {"sample_weights": torch.from_numpy(mass[rows])}


def own_copy(student: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    """The user's student as a copy that training may change; a factory's is built."""
    if isinstance(student, nn.Module):
        return copy.deepcopy(student)
    built = student() if callable(student) else student
    if not isinstance(built, nn.Module):
        raise LimbeckError(f"a student is a torch module or a function that builds one: found {type(built).__name__}")
    return built


def _digest(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_student(model: nn.Module, data: Data) -> None:
    """Refuse a student that cannot take the data, or has another number of classes, naming both shapes."""
    probe = InputReader(data)(torch.arange(min(2, len(data))))
    with evaluating(model):
        try:
            logits = logits_of(call_model(model, probe))
        except (RuntimeError, TypeError) as error:
            shape = tuple(probe.shape) if isinstance(probe, Tensor) else {k: tuple(v.shape) for k, v in probe.items()}
            raise LimbeckError(
                f"the student cannot take a batch of {data.name!r} of shape {shape}: {str(error).splitlines()[0]}"
            ) from error
    if logits.shape[1] != data.num_classes:
        raise LimbeckError(
            f"the student returns {logits.shape[1]} classes, the data {data.name!r} have {data.num_classes}: "
            f"{', '.join(map(str, data.classes[:6]))}"
        )


def starting_model(initial: nn.Module, source: Teacher | None, recipe: Recipe) -> nn.Module:
    """The weights a stage starts from."""
    if recipe.start == "own" or source is None:
        return initial
    module = getattr(source, "module", None)
    if not isinstance(module, nn.Module):
        return initial
    theirs, own = module.state_dict(), initial.state_dict()
    if theirs.keys() == own.keys() and all(theirs[name].shape == own[name].shape for name in own):
        begun = copy.deepcopy(initial)
        begun.load_state_dict(theirs)
        return begun
    return initial


def _transplanted(
    model: nn.Module, teacher: Teacher, head: Head, example: Any, kinds: list[str]
) -> tuple[TransplantedStudent, Teacher, list[str]]:
    """The student ended in the teacher's last layer, and from where the teacher's features are to be taken."""
    module = getattr(teacher, "module", None)
    if not isinstance(module, nn.Module) or head.match == "vector":
        weight, bias = teacher.head()
        return transplant_weights(model, weight, bias, head.projector, head.student_layer), teacher, kinds
    transplanted = transplant(
        model, module, head.projector, head.student_layer, head.teacher_layer, head.match, example=example
    )
    if transplanted.match == "vector":
        return transplanted, teacher, kinds
    at_map = ModuleTeacher(module, head.teacher_layer, maps=transplanted.teacher_layer)
    return transplanted, at_map, ["maps" if kind == "features" else kind for kind in kinds]


def prepare_stage(
    name: str,
    initial: nn.Module,
    recipe: Recipe,
    training: Training,
    data: Data,
    train: Data,
    seed: int,
    rule: SelectionRule,
    teacher: Teacher | None,
    extra: Mapping[str, Any],
    key: dict[str, Any],
    ways: Mapping[str, Any] | None,
) -> Stage:
    """Take from the teacher what the recipe asks for, and build the student around it."""
    model = copy.deepcopy(initial)
    teacher_fields: list[Mapping[str, Column]] = [{}]
    views = None if training.views is None else bind(training.views, train, seed=seed)
    live: Callable[[Any, Tensor], dict[str, Tensor]] | None = None
    shapes: dict[str, Tensor] = {}
    notes: list[str] = []
    asked = recipe.teacher_outputs
    if asked and teacher is not None:
        example = InputReader(train)(torch.arange(min(2, len(train))))
        kinds = [kind for kind in sorted(asked) if kind != "head"]
        if recipe.head is not None:
            torch.manual_seed(derive_seed(seed, name, "projector"))
            model, teacher, kinds = _transplanted(model, teacher, recipe.head, example, kinds)
        as_fields = _as_fields(model, example)
        changing = views is not None and views.views.teacher_sees_changed
        endless = views is not None and views.views.online and changing
        passes = views.views.count if views is not None and changing and not endless else 1
        size = passes * output_bytes(teacher, train, kinds)
        held = not endless and size <= 1e9 * training.teacher_memory
        if ways is None:
            ways = _teacher_ways(teacher, kinds, train, training, passes if held else None)
        teacher = computed(teacher, ways, example)
        shapes = as_fields(teacher.outputs(example, torch.from_numpy(train.ids[:2]), kinds))
        if endless:
            live = _live(teacher, kinds, as_fields)
        elif held:
            teacher_fields = [
                as_fields(collect(by, train, kinds, batch_size=COLLECTED)) for by in teacher_by_view(teacher, views)
            ]
        else:
            teacher_fields = [
                asked_columns(by, train, kinds, as_fields, list(shapes)) for by in teacher_by_view(teacher, views)
            ]
            if not isinstance(teacher, StoredTeacher):
                notes.append(
                    f"the teacher's outputs take {size / 1e9:.3g} GB, teacher_memory allows "
                    f"{training.teacher_memory:g}: it is asked again in every step; write them once with Store.write "
                    "and give the store as the teacher, or allow more"
                )
    labels = torch.from_numpy(np.ascontiguousarray(train.y))
    context: dict[str, Any] = {
        "classes": data.num_classes,
        "samples": len(train),
        "epochs": training.epochs,
        "labels_all": labels,
        "class_counts": torch.bincount(labels, minlength=data.num_classes),
        "student_copy": initial,
        **extra,
    }
    if train.groups is not None:
        context["groups"] = len(train.groups.names)
        index = torch.from_numpy(train.groups.index)
        context["group_counts"] = torch.bincount(index[index >= 0], minlength=context["groups"])
    if "teacher_features" in shapes:
        context["teacher_width"] = shapes["teacher_features"].shape[1]
    if "teacher_maps" in shapes:
        context["teacher_map_shapes"] = [tuple(shapes["teacher_maps"].shape[1:])]
    augmented = None if views is None else Augmented(views, live)
    stage = Stage(name, model, recipe, training, data, seed, rule, teacher_fields, context, key, augmented=augmented)
    stage.teacher_ways, stage.notes = ways or {}, notes
    return stage


def _teacher_ways(
    teacher: Teacher, kinds: Sequence[str], train: Data, training: Training, passes: int | None
) -> dict[str, Any]:
    """How the teacher is computed, from a batch as it will be asked: of a few passes, or (None) in every step."""
    count = min(COLLECTED if passes is not None else training.batch_size, len(train))
    rows = torch.arange(count)
    batches = passes or training.epochs
    inputs = InputReader(train)(rows) if reads_inputs(teacher) else None
    wanted = teacher_ways(training.precision, training.compile)
    return choose_teacher_ways(
        wanted, teacher, kinds, inputs, torch.from_numpy(train.ids[:count]), batches * math.ceil(len(train) / count)
    )


def _as_fields(model: nn.Module, example: Any) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    """From what a teacher returns to the fields of a batch that the terms know."""
    projected: Tensor | None = None
    if isinstance(model, TransplantedStudent) and model.match == "map":
        with evaluating(model):
            _, projected = model.forward_with_features(example)

    def fields(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {f"teacher_{kind}".replace("teacher_teachers", "teachers"): outputs[kind] for kind in outputs}
        if projected is not None:
            assert isinstance(model, TransplantedStudent)
            found["teacher_features"] = model.target(found.pop("teacher_maps"), projected)
        if "teachers_logits" in found:
            # By sample first, like every other column.
            found["teachers_logits"] = found["teachers_logits"].transpose(0, 1).contiguous()
        return found

    return fields


def _live(
    teacher: Teacher, kinds: Sequence[str], as_fields: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> Callable[[Any, Tensor], dict[str, Tensor]]:
    """The teacher asked batch by batch."""

    def fields(images: Any, ids: Tensor) -> dict[str, Tensor]:
        return as_fields(teacher.outputs(images, ids, kinds))

    return fields


# Around the loop ----------------------------------------------------------------------------------------------------


def find_error_set(biased: Fitted, train: Data, source: str) -> Tensor:
    """The training rows `[n]` that a biased model gets wrong: in evaluation mode, or as it met them (`online`)."""
    if source == "online":
        return biased.details["wrong"]  # type: ignore[no-any-return]
    logits = batched_logits(biased.model, InputReader(train), len(train))
    return logits.argmax(1) != torch.from_numpy(np.ascontiguousarray(train.y))


def named_error_set(recipe: Recipe, train: Data) -> Tensor | None:
    """The training rows `[n]` in the groups that `identify` names; None where it names none.

    Samples of unknown group are in no group.

    Raises:
        RecipeError: for an unknown name, and where they are no training sample or all of them.
    """
    identify = recipe.identify
    if identify is None or identify.trains:
        return None
    index, names = (np.full(len(train), -1), ()) if train.groups is None else (train.groups.index, train.groups.names)
    inside = np.isin(index, identify.members(names))
    if inside.all() or not inside.any():
        how_many = "all" if inside.all() else "none"
        raise RecipeError(
            f"recipe {recipe.name!r}: {how_many} of the {len(train):,} training samples are in the groups named by "
            f"identify ({', '.join(identify.groups)}), so that nothing weighs more than the rest: name others of "
            f"{', '.join(names)}"
        )
    return torch.from_numpy(inside)


def describe_error_set(error_set: Tensor, train: Data) -> dict[str, Any]:
    """Its size and share, and how many samples of each group are in it."""
    wrong = error_set.numpy()
    found: dict[str, Any] = {"size": int(wrong.sum()), "share": float(wrong.mean())}
    if train.groups is not None:
        known = train.groups.index >= 0
        names = train.groups.names
        found["by_group"] = {
            name: int(np.count_nonzero(wrong[known & (train.groups.index == number)]))
            for number, name in enumerate(names)
        }
    return found


def _features(model: nn.Module, data: Data, batch_size: int = 1024) -> np.ndarray[Any, Any]:
    """What enters the last layer `[N, D]`, in evaluation mode."""
    reader, parts = InputReader(data), []
    with evaluating(model), FeatureTap(model) as tap:
        for start in range(0, len(data), batch_size):
            call_model(model, reader(torch.arange(start, min(start + batch_size, len(data)))))
            parts.append(tap.take().float().numpy())
    return np.concatenate(parts)


def refit_last_layer(model: nn.Module, data: Data, recipe: Recipe, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """DFR: a new last layer from the validation part, which is consumed as training data by it."""
    assert recipe.refit is not None
    held_out = data.validation
    features, training = (_features(model, part) for part in (held_out, data.train))
    assert held_out.groups is not None
    weight, bias = refit_dfr(
        features,
        held_out.y,
        held_out.groups.index,
        classes=data.num_classes,
        penalties=recipe.refit.penalties,
        refits=recipe.refit.refits,
        seed=derive_seed(seed, "refit") % (1 << 31),
        standardise_on=training,
    )
    refitted = replace_head(model, weight, bias).eval()
    return refitted, {"samples": len(held_out), "consumes": "validation labels and groups, as training data"}
