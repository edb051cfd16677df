"""Views of a sample: augmentation as a function of (seed, id, view), on whole batches of images.

    views = Views([Crop(padding=4), Flip(), Mixup(alpha=0.2)], views=4)
    views = Views.of({"views": 4, "augment": [{"name": "crop", "padding": 4}, "flip", {"name": "mixup", "alpha": 0.2}]})

`BoundViews` reads the samples of a data set in a view; `limbeck.fit(..., views=views)` does all of it.
"""

from limbeck.views.draws import Draws
from limbeck.views.mixing import CutMix, Mixing, Mixup
from limbeck.views.steps import Augmentation, ColourJitter, Crop, Cutout, Flip, Pixels
from limbeck.views.views import AUGMENTATIONS, BoundViews, Mix, Seen, Views

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "BoundViews",
    "ColourJitter",
    "Crop",
    "CutMix",
    "Cutout",
    "Draws",
    "Flip",
    "Mix",
    "Mixing",
    "Mixup",
    "Pixels",
    "Seen",
    "Views",
]
