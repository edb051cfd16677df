"""Where teacher outputs come from, and their store.

`as_teacher` makes a teacher of whatever is at hand; `require` refuses, before any training, what a teacher cannot
supply; `collect` asks it once for data that fit in memory, `Store` once for data that do not.
"""

from limbeck.teachers.base import FIELDS, SUPPLIES, Source, Teacher, batch_axis, check_teacher, require
from limbeck.teachers.collect import collect
from limbeck.teachers.convert import as_teacher
from limbeck.teachers.module import ModuleTeacher
from limbeck.teachers.onnx_file import OnnxTeacher
from limbeck.teachers.predictor import PredictorTeacher
from limbeck.teachers.probabilities import logits_from_probabilities
from limbeck.teachers.several import Ensemble, MappedTeacher, Several, map_classes
from limbeck.teachers.store import Store, StoredTeacher
from limbeck.teachers.table import TableTeacher
from limbeck.teachers.writing import Augment, Forecast

__all__ = [
    "FIELDS",
    "SUPPLIES",
    "Augment",
    "Ensemble",
    "Forecast",
    "MappedTeacher",
    "ModuleTeacher",
    "OnnxTeacher",
    "PredictorTeacher",
    "Several",
    "Source",
    "Store",
    "StoredTeacher",
    "TableTeacher",
    "Teacher",
    "as_teacher",
    "batch_axis",
    "check_teacher",
    "collect",
    "logits_from_probabilities",
    "map_classes",
    "require",
]
