"""Which colour, shape and dash stands for what: colour-blind safe (Okabe and Ito, 2008), and never colour alone."""

from __future__ import annotations

from dataclasses import dataclass

from limbeck.report.summary import Summary

BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
DARK, GREY = "#1f2933", "#7b8794"
FONT = (
    'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Hiragino Sans", "Yu Gothic UI", Meiryo, '
    '"Noto Sans CJK JP", "Noto Sans JP", sans-serif'
)

# Five colours and four shapes: coprime lengths, so that twenty students all look different.
_STUDENT_COLOURS = (BLUE, GREEN, PURPLE, ORANGE, SKY)
_STUDENT_SHAPES = ("circle", "diamond", "cross", "triangle-right")
_TEACHER_STYLES = ((DARK, "triangle-up"), (GREY, "triangle-down"), (DARK, "triangle-left"), (GREY, "triangle-up"))
_GROUP_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, DARK, ORANGE, SKY, GREY)
_GROUP_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (1, 0), (6, 3), (2, 2), (8, 3, 2, 3))


@dataclass(frozen=True)
class Style:
    """How one model looks in every chart."""

    colour: str
    shape: str


def model_styles(summary: Summary) -> dict[str, Style]:
    """A style for each model by key: triangles for teachers, a square for the plain student, the rest in turn."""
    styles: dict[str, Style] = {}
    for position, model in enumerate(summary.teachers):
        styles[model.key] = Style(*_TEACHER_STYLES[position % len(_TEACHER_STYLES)])
    others = [model for model in summary.students if model is not summary.plain]
    if summary.plain is not None:
        styles[summary.plain.key] = Style(VERMILION, "square")
    for position, model in enumerate(others):
        colour = _STUDENT_COLOURS[position % len(_STUDENT_COLOURS)]
        styles[model.key] = Style(colour, _STUDENT_SHAPES[position % len(_STUDENT_SHAPES)])
    return styles


def group_colours(number: int) -> list[str]:
    """A colour for each of a few groups."""
    return [_GROUP_COLOURS[position % len(_GROUP_COLOURS)] for position in range(number)]


def group_dashes(number: int) -> list[list[int]]:
    """A dash pattern for each of a few groups."""
    return [list(_GROUP_DASHES[position % len(_GROUP_DASHES)]) for position in range(number)]
