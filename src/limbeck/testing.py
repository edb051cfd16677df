"""Does a term, a weighting or a recipe of your own keep the rules? The checks that this library's own pass.

    from limbeck.testing import check_term
    check_term(my_term)

Each check raises `ConformanceError`, an `AssertionError` that says which rule is broken and what was found.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from limbeck.callbacks import RunState
from limbeck.data import Data
from limbeck.fitting import fit
from limbeck.heads import find_head
from limbeck.presets import as_recipe
from limbeck.recipe import Recipe, Term, Weighting
from limbeck.teachers import Several, as_teacher
from limbeck.terms.catalogue import context_needs

SAMPLES, BATCH, GROUPS, WIDTH, TEACHER_WIDTH = 24, 8, 3, 6, 10
STUDENT = ("student_logits", "student_features", "student_maps", "early_features")
TEACHER = ("teacher_logits", "teachers_logits", "teacher_features", "teacher_maps")
Reference = Callable[..., Any]


class ConformanceError(AssertionError):
    """A rule of this library that a part does not keep."""


def _require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise ConformanceError(f"{name}: {rule}")


def example_batch(
    fields: tuple[str, ...], *, size: int = BATCH, classes: int = 5, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """A batch with these fields, `[size]` samples; the student's fields ask for a gradient.

    The last class and the last group are absent from it.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shapes = {
        "student_logits": (size, classes),
        "teacher_logits": (size, classes),
        "teachers_logits": (2, size, classes),
        "student_features": (size, WIDTH),
        "teacher_features": (size, TEACHER_WIDTH),
        "student_maps": (size, WIDTH, 4, 4),
        "teacher_maps": (size, TEACHER_WIDTH, 4, 4),
        "early_features": (size, WIDTH),
        "x": (size, WIDTH),
    }
    drawn = {name: (2 * draw(*shape)).to(dtype) for name, shape in shapes.items()}
    numbers = torch.arange(size)
    drawn |= {
        "targets": draw(size, classes).softmax(1).to(dtype),
        "labels": numbers % (classes - 1),
        "groups": numbers % (GROUPS - 1),
        "ids": 100 + numbers,
        "rows": numbers,
    }
    batch: dict[str, Any] = {"progress": 0.25, "epoch": 1, **drawn}
    for name in STUDENT:
        batch[name] = batch[name].requires_grad_()
    return {name: batch[name] for name in fields}


def example_context(classes: int = 5) -> dict[str, Any]:
    """What a run tells the constructor of a part with a state."""
    torch.manual_seed(0)
    labels = torch.arange(SAMPLES) % classes
    return {
        "classes": classes,
        "samples": SAMPLES,
        "groups": GROUPS,
        "group_counts": torch.tensor([10, 8, 6]),
        "class_counts": torch.bincount(labels, minlength=classes),
        "labels_all": labels,
        "epochs": 4,
        "student_width": WIDTH,
        "teacher_width": TEACHER_WIDTH,
        "early_width": WIDTH,
        "student_map_shapes": [(WIDTH, 4, 4)],
        "teacher_map_shapes": [(TEACHER_WIDTH, 4, 4)],
        "error_set": torch.arange(SAMPLES) % 4 == 0,
        "student_copy": nn.Linear(WIDTH, classes),
    }


def _built(function: Callable[..., Any], given: Mapping[str, Any], classes: int) -> Callable[..., Any]:
    if not isinstance(function, type):
        return lambda **fields: function(**fields, **given)
    context = example_context(classes)
    bound = {name: context[name] for name in context_needs(function) if name not in given}
    return function(**bound, **given)  # type: ignore[no-any-return]


def _matched(batch: dict[str, Any], function: Callable[..., Any]) -> dict[str, Any]:
    # A term without a projector of its own compares features of one width, as a transplanted student supplies them.
    widths = {"student_width", "teacher_width"} & set(context_needs(function))
    if not widths and {"student_features", "teacher_features"} <= set(batch):
        batch["teacher_features"] = batch["teacher_features"][:, :WIDTH]
    return batch


def check_term(
    term: Callable[..., Any] | Term | str,
    *,
    reference: Reference | None = None,
    minimum_classes: int | None = None,
    tolerance: float = 1e-5,
) -> None:
    """Check a term: a function of batch fields, a class of `nn.Module`, a `Term` or a name.

    * one loss a sample, `[B]`, in float32 or better (a scalar for a batch statistic);
    * gradient reaches the student and nothing else; no input is changed;
    * a batch of one, an absent class, half precision, logits of ±1e4 and two classes give finite values and gradients;
    * value and gradient equal `reference`, a function of the same fields in float64, where one is given.

    Args:
        reference: called with the fields in float64 and the term's options; returns `[B]` (or a scalar).
        minimum_classes: the least number of classes that it supports; by default the term's own.
        tolerance: of the comparison with `reference`, relative and absolute.

    Raises:
        ConformanceError: for the first rule that is broken.
    """
    part = term if isinstance(term, Term) else Term.named(term) if isinstance(term, str) else Term(term)
    fields, name = part.needs, part.name
    least = part.minimum_classes if minimum_classes is None else minimum_classes

    def run(batch: dict[str, Any], classes: int) -> tuple[Tensor, dict[str, Tensor]]:
        value = _built(part.function, part.options, classes)(**batch)
        _require(isinstance(value, Tensor), name, f"returned {type(value).__name__}, expected a tensor")
        students = {key: batch[key] for key in STUDENT if key in batch}
        gradients = torch.autograd.grad(value.sum(), list(students.values()), allow_unused=True)
        return value, {key: g for key, g in zip(students, gradients, strict=True) if g is not None}

    def finite(batch: dict[str, Any], classes: int, when: str) -> None:
        value, gradients = run(_matched(batch, part.function), classes)
        _require(
            bool(torch.isfinite(value).all()), name, f"the loss is not finite {when}: {value.flatten()[:3].tolist()}"
        )
        for key, gradient in gradients.items():
            _require(bool(torch.isfinite(gradient).all()), name, f"the gradient at {key} is not finite {when}")

    batch = _matched(example_batch(fields, classes=max(5, least)), part.function)
    for key in TEACHER:
        if key in batch:
            batch[key].requires_grad_()
    before = {key: value.detach().clone() for key, value in batch.items() if isinstance(value, Tensor)}
    value, gradients = run(batch, max(5, least))
    shape = (BATCH,) if part.per_sample else ()
    _require(
        tuple(value.shape) == shape,
        name,
        f"returned shape {list(value.shape)}, expected {list(shape)} (per_sample={part.per_sample})",
    )
    _require(value.dtype in (torch.float32, torch.float64), name, f"computes in {value.dtype}, expected float32")
    _require(any(key in batch for key in STUDENT), name, "reads nothing of the student, so it cannot teach it")
    moved = any(bool(gradient.abs().sum() > 0) for gradient in gradients.values())
    _require(moved, name, "no gradient reaches the student")
    for key in TEACHER:
        if key in batch:
            again = _built(part.function, part.options, max(5, least))(**batch)
            found = torch.autograd.grad(again.sum(), batch[key], allow_unused=True)[0]
            _require(
                found is None or not bool(found.abs().sum() > 0), name, f"a gradient reaches {key}: detach the teacher"
            )
    for key, old in before.items():
        _require(torch.equal(batch[key].detach(), old), name, f"changed its input {key}")

    finite(example_batch(fields, size=1, classes=max(5, least)), max(5, least), "for a batch of one")
    finite(example_batch(fields, classes=least), least, f"at {least} classes")
    for half in (torch.float16, torch.bfloat16):
        halves = example_batch(fields, classes=max(5, least), dtype=half)
        if "x" not in fields:
            finite(halves, max(5, least), f"in {half}")
    extreme = example_batch(fields, classes=max(5, least))
    for key in ("student_logits", "teacher_logits"):
        if key in extreme:
            extreme[key] = (extreme[key].detach() * 1e4).clamp(-1e4, 1e4).requires_grad_(key in STUDENT)
    finite(extreme, max(5, least), "for logits of ±1e4")
    if reference is not None:
        _against_reference(part, reference, tolerance, max(5, least))


def _against_reference(part: Term, reference: Reference, tolerance: float, classes: int) -> None:
    batch = _matched(example_batch(part.needs, classes=classes), part.function)
    exact = {
        key: value.detach().double().requires_grad_(key in STUDENT)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for key, value in batch.items()
    }
    value = _built(part.function, part.options, classes)(**batch)
    wanted = torch.as_tensor(reference(**exact, **part.options))
    gap = float((value.detach().double() - wanted.detach()).abs().max())
    limit = tolerance * (1 + float(wanted.detach().abs().max()))
    _require(gap <= limit, part.name, f"differs from the reference by {gap:.2e}")
    for key in STUDENT:
        if key in batch:
            found, expected = (_gradient(v, b[key]) for v, b in ((value, batch), (wanted, exact)))
            gap = float((found.double() - expected).abs().max())
            limit = tolerance * (1 + float(expected.abs().max()))
            _require(gap <= limit, part.name, f"the gradient at {key} differs from the reference by {gap:.2e}")


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    found = torch.autograd.grad(value.sum(), at, allow_unused=True, materialize_grads=True, retain_graph=True)
    return found[0]


def check_weighting(
    weighting: Callable[..., Any] | Weighting | str, *, reference: Reference | None = None, tolerance: float = 1e-5
) -> None:
    """Check a weighting: a function, a class of `nn.Module`, a `Weighting` or a name.

    * one scalar from losses `[B]`, whose gradient reaches the losses; no input is changed;
    * a batch of one and an absent group are finite;
    * all its state is in its state dict: a copy that is loaded goes on exactly as the first one;
    * value and gradient equal `reference(losses, **fields)` in float64 where one is given.

    Raises:
        ConformanceError: for the first rule that is broken.
    """
    part = (
        weighting
        if isinstance(weighting, Weighting)
        else Weighting.named(weighting)
        if isinstance(weighting, str)
        else Weighting(weighting)
    )
    name, fields = part.name, part.needs
    shape = (2, BATCH) if part.per_teacher else (BATCH,)
    options = dict(part.options) | ({"biased": 0} if part.per_teacher and "biased" not in part.options else {})

    def losses(size: int = BATCH, seed: int = 3) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(*shape[:-1], size, generator=generator).requires_grad_()

    def call(built: Callable[..., Any], values: Tensor, size: int = BATCH, seed: int = 0) -> Tensor:
        return built(values, **example_batch(fields, size=size, seed=seed))  # type: ignore[no-any-return]

    built = _built_weighting(part, options)
    values = losses()
    batch = example_batch(fields)
    before = {key: value.detach().clone() for key, value in batch.items() if isinstance(value, Tensor)}
    loss = built(values, **batch)
    _require(
        isinstance(loss, Tensor) and loss.dim() == 0,
        name,
        "returned no scalar: a weighting reduces the losses to one number",
    )
    gradient = torch.autograd.grad(loss, values)[0]
    _require(bool(gradient.abs().sum() > 0), name, "no gradient reaches the losses")
    _require(bool(torch.isfinite(gradient).all()), name, "the gradient at the losses is not finite")
    for key, old in before.items():
        _require(torch.equal(batch[key].detach(), old), name, f"changed its input {key}")
    single = call(_built_weighting(part, options), losses(1), size=1)
    _require(bool(torch.isfinite(single)), name, "is not finite for a batch of one, where groups are absent")
    if isinstance(built, nn.Module):
        twin = _built_weighting(part, options)
        assert isinstance(twin, nn.Module)
        state = copy.deepcopy(built.state_dict())
        twin.load_state_dict(state)
        for seed in (5, 6):
            one, other = (call(each, losses(seed=seed), seed=seed) for each in (built, twin))
            _require(
                torch.equal(one, other),
                name,
                "goes on differently from its state dict: state must be in parameters or buffers",
            )
    if reference is not None:
        values, exact = losses(), losses().detach().double().requires_grad_()
        found = call(_built_weighting(part, options), values)
        wanted = torch.as_tensor(reference(exact, **example_batch(fields)))
        gap = abs(float(found.detach()) - float(wanted.detach()))
        _require(gap <= tolerance * (1 + abs(float(wanted.detach()))), name, f"differs from the reference by {gap:.2e}")
        ours, theirs = torch.autograd.grad(found, values)[0], torch.autograd.grad(wanted, exact)[0]
        gap = float((ours.double() - theirs).abs().max())
        _require(gap <= tolerance, name, f"the gradient at the losses differs from the reference by {gap:.2e}")


def _built_weighting(part: Weighting, given: Mapping[str, Any]) -> Callable[..., Any]:
    if not isinstance(part.factory, type):
        return lambda losses, **fields: part.factory(losses, **fields, **given)
    context = example_context()
    bound = {name: context[name] for name in part.context if name not in given}
    return part.factory(**bound, **given)  # type: ignore[no-any-return]


def check_recipe(
    recipe: str | Mapping[str, Any] | Recipe, *, functions: Mapping[str, Any] | None = None, classes: int = 4
) -> None:
    """Check a recipe by training with it, a small student from a small teacher, with groups.

    * plain data and back give an equal recipe;
    * the teacher's and the given student's bytes, modes and gradients are as they were;
    * the same seed gives the same bytes; an interrupted and resumed run gives those of the straight one;
    * some weight of the student moves, and the result is finite.

    Raises:
        ConformanceError: for the first rule that is broken.
    """
    made = as_recipe(recipe, functions)
    name = made.name
    back = Recipe.from_dict(made.to_dict(), functions)
    _require(back.to_dict() == made.to_dict(), name, "is not the same after to_dict and from_dict")
    images = any(field.endswith("_maps") for field in made.needs)
    data, student, teacher = _example_run(classes, images)
    source: Any = teacher if made.teacher_outputs else None
    if "teachers_logits" in made.teacher_outputs:
        source = Several([as_teacher(teacher), as_teacher(_network(classes, images, 16, 3))])
    before = [_state(model) for model in (student, teacher)]
    settings: dict[str, Any] = {
        "teacher": source,
        "recipe": made,
        "epochs": 2,
        "batch_size": 16,
        "seed": 1,
        "selection": "last",
    }
    straight = fit(student, data, **settings)
    _require(
        [_state(model) for model in (student, teacher)] == before, name, "changed the teacher or the given student"
    )
    for model in (student, teacher):
        _require(all(part.training for part in model.modules()), name, "left a module in another mode")
        _require(
            all(part.grad is None for part in model.parameters()),
            name,
            "left a gradient in the teacher or the given student",
        )
    again = fit(student, data, **settings)
    _require(
        _state(again.model) == _state(straight.model), name, "is not reproducible: the same seed gave other weights"
    )
    with tempfile.TemporaryDirectory() as folder:
        interrupt = _Interrupt()
        with suppress(_InterruptedError):
            fit(student, data, checkpoint=folder, resume=True, callbacks=[interrupt], **settings)
        _require(interrupt.happened, name, "could not be interrupted")
        resumed = fit(student, data, checkpoint=folder, resume=True, **settings)
    _require(_state(resumed.model) == _state(straight.model), name, "a resumed run differs from the straight one")
    finite = all(bool(torch.isfinite(value).all()) for value in straight.model.state_dict().values())
    _require(finite, name, "left weights that are not finite")
    _require(_state(straight.model) != _state(student), name, "moved no weight of the student")


class _InterruptedError(Exception):
    pass


class _Interrupt:
    """Ends a run as a crash would, when the second epoch of its last stage is over and before it is kept."""

    happened = False

    def on_start(self, run: RunState) -> None:
        """Nothing."""

    def on_epoch(self, run: RunState) -> None:
        """Crash."""
        if run.stage.endswith("student") and len(run.history) == 2:
            self.happened = True
            raise _InterruptedError

    def on_end(self, run: RunState) -> None:
        """Nothing."""


def _state(model: nn.Module) -> bytes:
    return b"".join(value.detach().contiguous().numpy().tobytes() for value in model.state_dict().values())


def _network(classes: int, images: bool, width: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if images:
            return nn.Sequential(
                nn.Conv2d(1, width, 3, padding=1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(width, classes),
            )
        return nn.Sequential(nn.Linear(WIDTH, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, classes))


def _example_run(classes: int, images: bool) -> tuple[Data, nn.Module, nn.Module]:
    generator = np.random.default_rng(0)
    samples = 160
    labels = np.arange(samples) % classes
    shape = (samples, 1, 6, 6) if images else (samples, WIDTH)
    inputs = generator.normal(size=shape) + labels.reshape(-1, *[1] * (len(shape) - 1))
    site = generator.integers(0, 2, samples)
    data = Data(inputs.astype(np.float32), labels, attributes={"site": site}, groups="site")
    student, teacher = _network(classes, images, 5, 1), _network(classes, images, 12, 2)
    assert find_head(student)
    return data, student, teacher
