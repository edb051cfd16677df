"""Every published method as a recipe, by name: the five systems, their baselines and their companions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from limbeck.errors import RecipeError, unknown_name
from limbeck.recipe import Arbitrate, Choose, Head, Identify, Recipe, Refit, Term, Weighting

ONE_TWELFTH = 1 / 12
"""RLD's and DKD's warm-up: 20 of 240 epochs, as a share of training."""


@dataclass(frozen=True)
class Preset:
    """A method by name.

    Args:
        build: from its hyper-parameters to a recipe.
        title: what it is called in full.
        paper: where it is from.
        trusts: who is taken to be right, the teacher or the label.
        labels: the labels it consumes, besides those of training.
        classes: the class counts that it is for.
        note: what a user should know before choosing it.
    """

    build: Callable[..., Recipe]
    title: str
    paper: str
    trusts: str
    labels: str = "none"
    classes: str = "any"
    note: str = ""

    @property
    def options(self) -> dict[str, Any]:
        """Its hyper-parameters and their defaults."""
        return {name: entry.default for name, entry in inspect.signature(self.build).parameters.items()}


def _cross_entropy(weight: float = 1.0, **more: Any) -> Term:
    return Term.named("cross_entropy", weight=weight, **more)


def _beside_cross_entropy(name: str, weight: float = 1.0, **options: Any) -> list[Term]:
    return [_cross_entropy(), Term.named(name, weight=weight, **options)]


# No teacher -----------------------------------------------------------------------------------------------------------


def erm() -> Recipe:
    return Recipe([_cross_entropy()])


def label_smoothing(epsilon: float = 0.1) -> Recipe:
    return Recipe([Term.named("label_smoothing", epsilon=epsilon)])


def gce(q: float = 0.7) -> Recipe:
    return Recipe([Term.named("gce", q=q)])


def elr(strength: float = 3.0, momentum: float = 0.7) -> Recipe:
    return Recipe(_beside_cross_entropy("elr", strength=strength, momentum=momentum))


def tf_kd(alpha: float = 0.1, temperature: float = 20.0, confidence: float = 0.99) -> Recipe:
    own = Term.named("tf_kd", weight=alpha, temperature=temperature, confidence=confidence)
    return Recipe([_cross_entropy(1 - alpha), own])


def group_dro(
    step: float = 0.01, adjustment: float = 0.0, sampling: str = "group_balanced", absent: str = "zero"
) -> Recipe:
    weighting = Weighting.named("group_dro", step=step, adjustment=adjustment, absent=absent)
    return Recipe([_cross_entropy()], weighting, sampling=sampling)


def group_balanced(sampling: str = "group_balanced") -> Recipe:
    return Recipe([_cross_entropy()], sampling=sampling)


def jtt(upweight: float = 50.0, identify_epochs: int = 1, source: str = "eval") -> Recipe:
    weighting = Weighting.named("upweight", upweight=upweight, reduction="duplicates")
    return Recipe([_cross_entropy()], weighting, identify=Identify(identify_epochs, source))


def lff(q: float = 0.7, smoothing: float = 0.7, learning_rate: float = 1e-3) -> Recipe:
    return Recipe([_cross_entropy()], Weighting.named("lff", q=q, smoothing=smoothing, learning_rate=learning_rate))


def dfr(refits: int = 20) -> Recipe:
    return Recipe([_cross_entropy()], refit=Refit(refits=refits))


def multi_round(rounds: int = 3) -> Recipe:
    return Recipe([Term.named("kl_divergence", temperature=1.0)], rounds=rounds)


def born_again(rounds: int = 2, alpha: float = 0.5, temperature: float = 1.0) -> Recipe:
    return Recipe(_distilled(alpha, temperature), rounds=rounds)


# One teacher ----------------------------------------------------------------------------------------------------------


def _distilled(alpha: float, temperature: float) -> list[Term]:
    terms = [Term.named("kl_divergence", weight=alpha, temperature=temperature)]
    return terms if alpha == 1 else [*terms, _cross_entropy(1 - alpha)]


def kd(alpha: float = 0.9, temperature: float = 4.0) -> Recipe:
    return Recipe(_distilled(alpha, temperature))


def dkd(alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup: float = ONE_TWELFTH) -> Recipe:
    return Recipe(_beside_cross_entropy("decoupled", alpha=alpha, beta=beta, temperature=temperature, warmup=warmup))


def lskd(weight: float = 9.0, temperature: float = 2.0) -> Recipe:
    return Recipe(_beside_cross_entropy("kl_divergence", weight, temperature=temperature, standardise=True))


def rld(
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    confidence_temperature: float | None = None,
    warmup: float = ONE_TWELFTH,
    standardise: bool = False,
) -> Recipe:
    if standardise:
        # With logit standardisation the authors' code has tau 2 and both weights ninefold.
        alpha, beta, temperature = 9 * alpha, 9 * beta, 2.0
    options: dict[str, Any] = {"alpha": alpha, "beta": beta, "temperature": temperature}
    if confidence_temperature is not None:
        options["confidence_temperature"] = confidence_temperature
    return Recipe(_beside_cross_entropy("refined_logits", warmup=warmup, standardise=standardise, **options))


def btkd(
    alpha: float = 0.5,
    temperature: float = 4.0,
    variant: str = "two_class",
    space: str = "prob",
    eliminate_only: bool = False,
) -> Recipe:
    bias = Term.named(
        "rectified_bias",
        weight=1 - alpha,
        temperature=temperature,
        variant=variant,
        space=space,
        eliminate_only=eliminate_only,
    )
    return Recipe([_cross_entropy(alpha), bias])


def btkd_elimination(alpha: float = 0.5, temperature: float = 4.0) -> Recipe:
    return btkd(alpha, temperature, eliminate_only=True)


def pll(k: int = 2, loss: str = "gce", q: float = 0.7, start: str = "teacher") -> Recipe:
    return Recipe([Term.named("partial_label", k=k, loss=loss, q=q)], rounds=2, start=start)


def dett(
    upweight: float = 20.0, identify_epochs: int = 1, source: str = "eval", projector: str = "auto", match: str = "auto"
) -> Recipe:
    return Recipe(
        [Term.named("feature_mse")],
        Weighting.named("upweight", upweight=upweight, reduction="mean"),
        Head(projector, match),
        identify=Identify(identify_epochs, source),
    )


def simkd(projector: str = "auto", match: str = "auto") -> Recipe:
    return Recipe([Term.named("feature_mse")], head=Head(projector, match))


def groupdistil(
    alpha: float = 0.9,
    temperature: float = 4.0,
    step: float = 0.01,
    adjustment: float = 0.0,
    sampling: str = "group_balanced",
    absent: str = "keep",
    normalise_losses: bool = False,
    cross_entropy: str = "inside",
) -> Recipe:
    if cross_entropy not in ("inside", "outside", "none"):
        raise RecipeError(unknown_name("place of the cross entropy", cross_entropy, ("inside", "outside", "none")))
    terms = [Term.named("kl_divergence", weight=alpha, temperature=temperature)]
    if cross_entropy != "none" and alpha < 1:
        terms.append(_cross_entropy(1 - alpha, weighted=cross_entropy == "inside"))
    if alpha == 0:
        terms = terms[1:]
    weighting = Weighting.named(
        "group_dro", step=step, adjustment=adjustment, absent=absent, normalise_losses=normalise_losses
    )
    return Recipe(terms, weighting, sampling=sampling)


def dedier(alpha: float = 0.9, temperature: float = 4.0, beta: float = 3.0, power: float = 1.0) -> Recipe:
    return Recipe(_distilled(alpha, temperature), Weighting.named("dedier", beta=beta, alpha=power))


def agre_kd(alpha: float = 1.0, temperature: float = 4.0, biased: int = 0) -> Recipe:
    return Recipe(_distilled(alpha, temperature), Weighting.named("agre", temperature=temperature, biased=biased))


def dist(weight: float = 2.0, temperature: float = 4.0) -> Recipe:
    return Recipe(_beside_cross_entropy("dist", weight, temperature=temperature))


def nkd(gamma: float = 1.5, temperature: float = 1.0) -> Recipe:
    return Recipe(_beside_cross_entropy("nkd", gamma=gamma, temperature=temperature))


def ttm(weight: float = 1.0, gamma: float = 0.25) -> Recipe:
    return Recipe(_beside_cross_entropy("ttm", weight, gamma=gamma))


def wttm(weight: float = 1.0, gamma: float = 0.25) -> Recipe:
    return Recipe(_beside_cross_entropy("wttm", weight, gamma=gamma))


def ctkd(alpha: float = 0.9) -> Recipe:
    return Recipe([Term.named("ctkd", weight=alpha), _cross_entropy(1 - alpha)])


def la(temperature: float = 4.0) -> Recipe:
    return Recipe([Term.named("la", temperature=temperature)])


def lr(weight: float = 1.0, temperature: float = 1.0, eta: float = 0.8) -> Recipe:
    return Recipe(_beside_cross_entropy("lr", weight, temperature=temperature, eta=eta))


def rc(weight: float = 0.1, alpha: float = 0.9, temperature: float = 4.0) -> Recipe:
    return Recipe([*_distilled(alpha, temperature), Term.named("rc", weight=weight, temperature=temperature)])


def fitnet(weight: float = 100.0) -> Recipe:
    return Recipe(_beside_cross_entropy("fitnet", weight))


def at(weight: float = 1000.0) -> Recipe:
    return Recipe(_beside_cross_entropy("at", weight))


def rkd(distance: float = 25.0, angle: float = 50.0) -> Recipe:
    return Recipe(_beside_cross_entropy("rkd", distance_weight=distance, angle_weight=angle))


def crd(weight: float = 0.8) -> Recipe:
    return Recipe(_beside_cross_entropy("crd", weight))


# Who is wrong, the teacher or the label? ----------------------------------------------------------------------------


def arbitration(
    gamma: float = 0.7,
    attribute: str | Sequence[str] | None = None,
    judge: str = "auto",
    noise: str = "auto",
    distil: float = 0.0,
    relations: float = 0.0,
    temperature: float = 4.0,
    witness: str = "auto",
    shortcut: str = "auto",
) -> Recipe:
    terms = [Term.named("soft_cross_entropy", weight=1 - distil)]
    if distil:
        terms.append(Term.named("kl_divergence", weight=distil, temperature=temperature))
    if relations:
        terms.append(
            Term.named("expected_refined_logits", weight=relations, temperature=temperature, warmup=ONE_TWELFTH)
        )
    names = None if attribute is None else (attribute,) if isinstance(attribute, str) else tuple(attribute)
    step = Arbitrate(names, judge, gamma=gamma, noise=noise, witness=witness, shortcut=shortcut)
    return Recipe(terms, arbitrate=step, sampling="posterior")


def auto(
    attribute: str | Sequence[str] | None = None,
    judge: str = "auto",
    margin: float = 0.03,
    shortcut: str = "auto",
) -> Recipe:
    def arbitrated(gamma: float, distil: float = 0.0, relations: float = 0.0) -> Recipe:
        return arbitration(gamma, attribute, judge, distil=distil, relations=relations, shortcut=shortcut)

    found: dict[str, Recipe] = {
        "plain": erm(),
        "group weights": group_balanced(),
        "arbitration": arbitrated(0.7),
        "arbitration, cells even": arbitrated(1.0),
        "kd": kd(),
        "kd, group weights": kd().replace(sampling="group_balanced"),
        "rld": rld(),
        "btkd": btkd(),
        "pll": pll(),
        "groupdistil": groupdistil(),
        "dett": dett(),
        "arbitration and kd": arbitrated(0.7, distil=0.5),
        "arbitration and rld": arbitrated(1.0, relations=1.0),
    }
    candidates = tuple(recipe.replace(name=name) for name, recipe in found.items())
    step = found["arbitration"].arbitrate
    return Recipe([_cross_entropy()], arbitrate=step, choose=Choose(candidates, margin))


PRESETS: Mapping[str, Preset] = {
    "rld": Preset(
        rld,
        "Refined logit distillation",
        "arXiv 2408.07703, ICCV 2025",
        "label",
        note="at two classes only the confidence is left",
    ),
    "btkd": Preset(btkd, "Distilling from the teacher's bias", "arXiv 2412.09874, AAAI 2025", "label"),
    "btkd_elimination": Preset(
        btkd_elimination, "BTKD without the samples the teacher gets wrong", "arXiv 2412.09874, AAAI 2025", "both"
    ),
    "pll": Preset(
        pll,
        "Self-distillation with partial labels",
        "arXiv 2402.10482, ICLR 2025",
        "teacher's top two",
        classes="3 or more",
        note="a teacher that is given takes the place of the first round",
    ),
    "multi_round": Preset(multi_round, "Multi-round self-distillation", "arXiv 2402.10482, ICLR 2025", "teacher"),
    "dett": Preset(
        dett,
        "Debiasing by teacher transplanting",
        "arXiv 2302.11187",
        "teacher",
        labels="validation groups, to choose λ, T and the epoch",
        note="identify: {groups: [name, …]} makes the error set of groups, declared or found",
    ),
    "groupdistil": Preset(
        groupdistil,
        "Group distributionally robust distillation",
        "arXiv 2311.00476",
        "teacher",
        labels="training groups, validation groups",
    ),
    "erm": Preset(erm, "Plain training", "no teacher", "label"),
    "label_smoothing": Preset(label_smoothing, "Label smoothing", "Szegedy et al. 2016, arXiv 1512.00567", "label"),
    "gce": Preset(gce, "Generalised cross entropy", "Zhang and Sabuncu 2018, arXiv 1805.07836", "neither fully"),
    "elr": Preset(elr, "Early-learning regularisation", "Liu et al. 2020, arXiv 2007.00151", "its own early self"),
    "tf_kd": Preset(tf_kd, "Teacher-free distillation", "Yuan et al. 2020, arXiv 1909.11723", "label"),
    "born_again": Preset(
        born_again, "Born-again networks", "Furlanello et al. 2018, arXiv 1805.04770", "teacher and label"
    ),
    "kd": Preset(kd, "Knowledge distillation", "Hinton et al. 2015, arXiv 1503.02531", "teacher and label"),
    "dkd": Preset(
        dkd,
        "Decoupled distillation",
        "Zhao et al. 2022, arXiv 2203.08679",
        "teacher and label",
        note="at two classes only the target class is left",
    ),
    "dist": Preset(
        dist, "Distillation from a stronger teacher", "Huang et al. 2022, arXiv 2205.10536", "teacher and label"
    ),
    "lskd": Preset(
        lskd,
        "Logit standardisation",
        "Sun et al. 2024, arXiv 2403.01427",
        "teacher and label",
        classes="3 or more",
        note="standardised logits of two classes have no gradient",
    ),
    "nkd": Preset(
        nkd,
        "Normalised distillation",
        "Yang et al. 2023, arXiv 2303.13005",
        "teacher and label",
        note="at two classes only the target class is left",
    ),
    "ttm": Preset(ttm, "Transformed teacher matching", "Zheng and Yang 2024, arXiv 2402.11148", "teacher and label"),
    "wttm": Preset(
        wttm, "Weighted transformed teacher matching", "Zheng and Yang 2024, arXiv 2402.11148", "teacher and label"
    ),
    "ctkd": Preset(ctkd, "Curriculum temperature", "Li et al. 2023, arXiv 2211.16231", "teacher and label"),
    "la": Preset(la, "Label swap (LA)", "Wen et al. 2019, arXiv 1911.07471", "label where they disagree"),
    "lr": Preset(lr, "Label revision (LR)", "Lan et al. 2024, arXiv 2404.03693", "label where they disagree"),
    "rc": Preset(rc, "Reversed correction (RC)", "as in the code of arXiv 2408.07703", "label"),
    "fitnet": Preset(fitnet, "FitNet hints", "Romero et al. 2015, arXiv 1412.6550", "teacher's features and label"),
    "at": Preset(
        at, "Attention transfer", "Zagoruyko and Komodakis 2017, arXiv 1612.03928", "teacher's maps and label"
    ),
    "simkd": Preset(simkd, "Reused teacher classifier", "Chen et al. 2022, arXiv 2203.14001", "teacher"),
    "rkd": Preset(
        rkd, "Relational distillation", "Park et al. 2019, arXiv 1904.05068", "teacher's relations and label"
    ),
    "crd": Preset(
        crd,
        "Contrastive representation distillation",
        "Tian et al. 2020, arXiv 1910.10699",
        "teacher's features and label",
    ),
    "group_dro": Preset(
        group_dro,
        "Group DRO",
        "Sagawa et al. 2020, arXiv 1911.08731",
        "label",
        labels="training groups, validation groups",
    ),
    "group_balanced": Preset(
        group_balanced, "Group-balanced sampling", "no teacher", "label", labels="training groups"
    ),
    "jtt": Preset(
        jtt,
        "Just train twice",
        "Liu et al. 2021, arXiv 2107.09044",
        "label",
        labels="validation groups, to choose λ and T",
        note="identify: {groups: [name, …]} makes the error set of groups, declared or found",
    ),
    "lff": Preset(lff, "Learning from failure", "Nam et al. 2020, arXiv 2007.02561", "label"),
    "dfr": Preset(
        dfr,
        "Deep feature reweighting",
        "Kirichenko et al. 2023, arXiv 2204.02937",
        "label",
        labels="validation groups, as training data",
    ),
    "dedier": Preset(dedier, "Early readouts", "Tiwari et al. 2023, arXiv 2310.18590", "teacher and label"),
    "arbitration": Preset(
        arbitration,
        "Arbitration: a posterior over the true class",
        "this project",
        "whoever is likelier to be right, per sample",
        labels="attributes of training samples, validation groups",
        note="docs/arbitration.md; attribute names what the label may be tied to",
    ),
    "auto": Preset(
        auto,
        "One student of the recipes that validation prefers, through arbitration",
        "this project",
        "whom validation says",
        labels="attributes of training samples, validation groups",
        note="trains its candidates in turn, then one student of the best; a teacher is used where it helps",
    ),
    "agre_kd": Preset(
        agre_kd,
        "Adaptive group-robust ensemble distillation",
        "Kenfack et al. 2024, arXiv 2411.14984",
        "the teachers that differ from a biased one",
        note="needs several teachers; the first is the biased one",
    ),
}


def preset(name: str, /, functions: Mapping[str, Any] | None = None, **settings: Any) -> Recipe:
    """A preset with hyper-parameters, and with any part of a recipe changed: how methods are combined.

    >>> preset("rld", beta=4.0, weighting="group_dro").weighting.name
    'group_dro'

    Raises:
        RecipeError: for an unknown preset or setting, with the nearest known one.
    """
    if name not in PRESETS:
        raise RecipeError(unknown_name("recipe", name, PRESETS))
    return _built(name, PRESETS[name].build, settings, functions)


def _built(
    name: str, build: Callable[..., Any], settings: Mapping[str, Any], functions: Mapping[str, Any] | None
) -> Recipe:
    """What `build` gives for those settings that it takes, with the parts that the others name changed."""
    known = list(inspect.signature(build).parameters)
    changeable = [entry.name for entry in fields(Recipe) if entry.name != "terms"]
    for key in settings:
        if key not in known and key not in changeable:
            raise RecipeError(f"recipe {name!r}: " + unknown_name("option", key, [*known, *changeable]))
    built = build(**{key: value for key, value in settings.items() if key in known})
    if not isinstance(built, Recipe):
        raise RecipeError(f"{name!r} gives a {type(built).__name__}, expected a Recipe")
    changes = {key: value for key, value in settings.items() if key not in known}
    return built.replace(**{"name": name, **changes}, functions=functions)


def as_recipe(value: str | Mapping[str, Any] | Recipe, functions: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from whatever names one.

    Args:
        value: a recipe; the name of a preset; {recipe: preset, option: …} with hyper-parameters and changed parts; or
            {name: …, terms: […], …} for one of the user's own.
        functions: the user's own terms, weightings and recipes by name.

    Raises:
        RecipeError: naming what cannot be used, and the nearest known name.
    """
    own = functions or {}
    if isinstance(value, Recipe):
        return value
    if isinstance(value, str):
        value = {"recipe": value}
    if not isinstance(value, Mapping):
        raise RecipeError(f"a recipe is a name, a mapping or a Recipe: found {value!r}")
    settings = dict(value)
    if "recipe" not in settings:
        return Recipe.from_dict(settings, own)
    name = str(settings.pop("recipe"))
    if name not in own:
        if name not in PRESETS:
            raise RecipeError(unknown_name("recipe", name, [*PRESETS, *own]))
        return preset(name, **settings, functions=own)
    made = own[name]
    return _built(name, made if callable(made) else lambda: made, settings, own)


def describe_presets() -> list[dict[str, Any]]:
    """Every preset as plain data: name, title, paper, trusts, teacher, labels, classes, options, note."""
    rows = []
    for name, entry in PRESETS.items():
        recipe = entry.build()
        classes = max((term.minimum_classes for term in recipe.terms), default=2)
        asks = sorted(recipe.teacher_outputs)
        teacher = "none" if not asks else ", ".join(asks) + (" (its own earlier rounds)" if recipe.rounds > 1 else "")
        rows.append(
            {
                "name": name,
                "title": entry.title,
                "paper": entry.paper,
                "trusts": entry.trusts,
                "teacher": teacher,
                "labels": entry.labels,
                "classes": entry.classes if classes == 2 else f"{classes} or more",
                "options": entry.options,
                "note": entry.note,
            }
        )
    return rows
