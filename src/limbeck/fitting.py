"""Fitting a student: what a recipe asks for before and after the loop."""

from __future__ import annotations

import copy
import hashlib
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
from limbeck.errors import CheckpointError, ConfigError, LimbeckError, unknown_name
from limbeck.heads import FeatureTap, TransplantedStudent, refit_dfr, replace_head, transplant, transplant_weights
from limbeck.loop import Fitted, Stage, train_stage
from limbeck.modes import evaluating
from limbeck.predict import InputReader, batched_logits, call_model, logits_of
from limbeck.presets import as_recipe
from limbeck.recipe import Head, Recipe
from limbeck.selection import SelectionRule, selection_rule
from limbeck.teachers import ModuleTeacher, Teacher, as_teacher
from limbeck.teachers import require as require_outputs
from limbeck.training import Training, derive_seed

if TYPE_CHECKING:
    from limbeck.data import Data


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
    if source is not None and recipe.teacher_outputs:
        require_outputs(source, recipe.teacher_outputs, by=f"recipe {recipe.name!r}")
        source.check(data.train, sorted(recipe.teacher_outputs))
    train = data.train
    views = views_for(recipe, training.views, train, seed=seed)
    if source is not None and recipe.teacher_outputs:
        check_teacher_views(source, views)
    if resume and checkpoint is None:
        raise CheckpointError("resume=True needs checkpoint=FOLDER: where the state of the interrupted run is")
    folder = None if checkpoint is None else Path(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "student"))
        initial = _own_copy(student)
        check_student(initial, data)
        key = {
            "recipe": recipe.to_dict(),
            "training": training.to_dict() | {"precision": "any"},
            "data": data.fingerprint(),
            "teacher": None if source is None else source.fingerprint(),
            "seed": seed,
            "selection": rule.name,
            "student": _digest(initial),
        }

        def run(name: str, model: nn.Module, what: Recipe, by: Teacher | None, **more: Any) -> Fitted:
            extra = more.pop("context", {})
            stage_training = more.pop("training", training)
            stage = _prepare(
                name, model, what, stage_training, data, train, seed, more.pop("rule", rule), by, extra, key
            )
            stage.callbacks, stage.resume = callbacks, resume
            stage.checkpoint = None if folder is None else folder / f"{name.replace(' ', '-')}.safetensors"
            stage.record_errors = more.pop("record_errors", False)
            return train_stage(stage)

        earlier: dict[str, Fitted] = {}
        details: dict[str, Any] = {}
        context: dict[str, Any] = {}
        if recipe.identify is not None:
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
            context["error_set"] = _error_set(biased, train, recipe.identify.source)
            details["error_set"] = _describe_error_set(context["error_set"], train)
        if recipe.rounds > 1 and source is None:
            earlier["round 1"] = run("round 1", initial, as_recipe("erm"), None)
            source = as_teacher(earlier["round 1"])
        for number in range(2, recipe.rounds):
            name = f"round {number}"
            earlier[name] = run(name, _begin(initial, source, recipe), recipe, source, context=context)
            source = as_teacher(earlier[name])
        fitted = run("student", _begin(initial, source, recipe), recipe, source, context=context)
        if recipe.refit is not None:
            fitted.model, details["refit"] = _refit(fitted.model, data, recipe, seed)
    fitted.recipe, fitted.earlier, fitted.details, fitted.warnings = recipe, earlier, details, warnings
    fitted.seconds = time.perf_counter() - started
    return fitted


# Before training ----------------------------------------------------------------------------------------------------


def _training(training: Training | None, settings: Mapping[str, Any]) -> Training:
    names = [entry.name for entry in fields(Training)]
    for name in settings:
        if name not in names:
            raise ConfigError("fit: " + unknown_name("setting", name, names))
    return replace(training or Training(), **settings)


def _own_copy(student: nn.Module | Callable[[], nn.Module]) -> nn.Module:
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


def _begin(initial: nn.Module, source: Teacher | None, recipe: Recipe) -> nn.Module:
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


def _prepare(
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
    key: Mapping[str, Any],
) -> Stage:
    """Take from the teacher what the recipe asks for, and build the student around it."""
    model = copy.deepcopy(initial)
    teacher_fields: list[dict[str, Tensor]] = [{}]
    views = None if training.views is None else bind(training.views, train, seed=seed)
    live: Callable[[Any, Tensor], dict[str, Tensor]] | None = None
    shapes: dict[str, Tensor] = {}
    asked = recipe.teacher_outputs
    if asked and teacher is not None:
        example = InputReader(train)(torch.arange(min(2, len(train))))
        kinds = [kind for kind in sorted(asked) if kind != "head"]
        if recipe.head is not None:
            torch.manual_seed(derive_seed(seed, name, "projector"))
            model, teacher, kinds = _transplanted(model, teacher, recipe.head, example, kinds)
        as_fields = _as_fields(model, example)
        if views is not None and views.views.online and views.views.teacher_sees_changed:
            live = _live(teacher, kinds, as_fields)
            shapes = live(example, torch.from_numpy(train.ids[:2]))
        else:
            teacher_fields = [as_fields(outputs) for outputs in teacher_by_view(teacher, train, kinds, views)]
            shapes = teacher_fields[0]
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
    stage_key = {**key, "stage": name}
    augmented = None if views is None else Augmented(views, live)
    return Stage(
        name, model, recipe, training, data, seed, rule, teacher_fields, context, stage_key, augmented=augmented
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


def _error_set(biased: Fitted, train: Data, source: str) -> Tensor:
    if source == "online":
        return biased.details["wrong"]  # type: ignore[no-any-return]
    logits = batched_logits(biased.model, InputReader(train), len(train))
    return logits.argmax(1) != torch.from_numpy(np.ascontiguousarray(train.y))


def _describe_error_set(error_set: Tensor, train: Data) -> dict[str, Any]:
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


def _refit(model: nn.Module, data: Data, recipe: Recipe, seed: int) -> tuple[nn.Module, dict[str, Any]]:
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
