"""Going through features one after another: which come, and what is said of them."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass

from assets.engine.recipe import digest
from assets.features.annotations import LONGEST, Annotation
from assets.tables.places import BehaviourSource
from explorer.annotations import now
from explorer.reader import Basis, Reader

N_FEATURES = 40
"""Features of a circuit that are gone through, the strongest; as many of each kind are mixed in.
Of a classifier's circuit it is all of them: each is judged for SHIFT."""


@dataclass(frozen=True)
class Item:
    """One thing to say something of; `chosen` says why it is among them."""

    basis: Basis
    submodule: str
    feature: int
    chosen: str

    @property
    def name(self) -> str:
        """``mlp_2/59``."""
        return f"{self.submodule}/{self.feature}"

    def sign(self, seed: int) -> str:
        """What stands for it in a form without telling what it is."""
        return digest([seed, self.basis, self.name])


def queue(
    reader: Reader, source: BehaviourSource, name: str, *, blind: bool = False, seed: int = 0
) -> list[Item]:
    """The strongest features of a circuit, the strongest first.

    Blind, as many random features and random neurons of the same submodules are mixed in, all in
    an order that the seed decides. Only what has a card can be judged blind.
    """
    held = reader.held_by(source, name)
    effects = {} if held is None else held.by_feature
    most = None if source == "classifiers" else N_FEATURES
    strongest = sorted(effects, key=lambda feature: -abs(effects[feature]))[:most]
    items = [_item(feature) for feature in strongest]
    if not blind:
        return items
    submodules = list(dict.fromkeys(item.submodule for item in items))
    with_card = {
        (row["basis"], submodule, row["feature"]): row["chosen"]
        for submodule in submodules
        for row in reader.with_card(submodule)
    }
    items = [item for item in items if ("features", item.submodule, item.feature) in with_card]
    rng = random.Random(seed)
    mixed = list(items)
    for basis in ("features", "neurons"):
        others = sorted(
            (submodule, feature)
            for (kind, submodule, feature), chosen in with_card.items()
            if kind == basis and chosen != "circuits" and f"{submodule}/{feature}" not in effects
        )
        for submodule, feature in rng.sample(others, min(len(items), len(others))):
            mixed.append(Item(basis, submodule, feature, "random"))
    rng.shuffle(mixed)
    return mixed


def _item(name: str) -> Item:
    submodule, _, number = name.partition("/")
    return Item("features", submodule, int(number), "circuits")


class Wrong(ValueError):
    """What was typed cannot be kept as it is."""


def annotation(
    item: Item, form: Mapping[str, str], *, weights: str | None, circuit: str, blind: bool
) -> Annotation:
    """What a form says of an item.

    Raises:
        Wrong: a name is missing, or a number is none from 0 to 100; says which field.
    """
    text, by = form.get("text", "").strip(), form.get("by", "").strip()
    if not by or len(by) > 100:
        raise Wrong("Your name is missing: say who rates, in 100 characters or fewer.")
    if len(text) > LONGEST:
        raise Wrong(f"The description has {len(text):,} characters: {LONGEST:,} are kept.")
    relevant = {"yes": True, "no": False}.get(form.get("relevant", ""))
    interpretability = _rating(form, "interpretability")
    complexity = _rating(form, "complexity")
    if not text and (interpretability, complexity, relevant) == (None, None, None):
        raise Wrong("There is nothing to save: describe the feature or rate it.")
    return Annotation(
        submodule=item.submodule,
        feature=item.feature,
        basis=item.basis,
        weights=weights if item.basis == "features" else None,
        text=text,
        interpretability=interpretability,
        complexity=complexity,
        relevant=relevant,
        by=by,
        at=now(),
        circuit=circuit,
        chosen=item.chosen,
        blind=blind,
    )


def _rating(form: Mapping[str, str], field: str) -> float | None:
    text = form.get(field, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise Wrong(f"{field} is {text[:20]!r}: give a number from 0 to 100, or leave it empty.")
    return value
