"""Samples by id: features, labels, attributes, groups and splits; readers, real data sets, injections.

`Data` is the value everything else works on. `load` gives a real data set by name, `Data.from_table`,
`Data.from_dataset`, `Data.from_images` and `Data.from_npz` read one's own, `inject` plants known faults for
experiments, `download.download` fetches known sets from their official sources.

The types of groups (`Column`, `Groups`, `declare`) live here, because `Data` is built from them;
`limbeck.groups` offers them together with everything else about groups.
"""

from limbeck.data import download, inject
from limbeck.data.catalogue import SETS, KnownSet, load
from limbeck.data.columns import Column, Groups
from limbeck.data.data import Data
from limbeck.data.encoder import TableEncoder
from limbeck.data.images import ImageReader
from limbeck.data.inputs import Reader
from limbeck.data.tables import read_table

__all__ = [
    "SETS",
    "Column",
    "Data",
    "Groups",
    "ImageReader",
    "KnownSet",
    "Reader",
    "TableEncoder",
    "download",
    "inject",
    "load",
    "read_table",
]
