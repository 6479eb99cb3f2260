"""Stage 7: descriptions of features by a language model behind an OpenAI-compatible address.

Off unless `labels.endpoint` is set. What is sent is the card: its contexts with the active tokens
marked, and the tokens that the feature promotes.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from assets.corpus.text import harmless
from assets.corpus.vocabulary import read_texts
from assets.engine.recipe import aside
from assets.engine.stage import Made, Metadata, TableStage, Work, always
from assets.engine.store import ArtifactStore, together
from assets.plots import records
from assets.settings import Experiment, ExperimentError
from assets.tables.conversions import frame
from assets.tables.places import (
    ENDPOINT_LABELS,
    FEATURE_CIRCUITS,
    VOCABULARY,
    card_contexts,
    cards,
)
from assets.tables.schemas import TABLES

CARD_SAYS = (
    "Below are pieces of text on which one feature of a language model is active. Tokens on which "
    "it is active stand in «», those on which it is most active in ««»». Then come the tokens that "
    "it makes more likely to follow. "
)
INSTRUCTION = (
    CARD_SAYS + "Say in at most twelve words what the feature stands for. Answer with the "
    "description alone."
)
_LONGEST = 200
_MOST_BYTES = 1 << 20
_PATIENCE = 3
_SHOWN = 20


@dataclass(frozen=True)
class Asking:
    """Which model is asked about how many features; see `assets.settings.EndpointSettings`."""

    submodules: tuple[str, ...]
    url: str
    model: str
    n_features: int
    key_variable: str | None = aside(None)
    timeout: float = aside(60.0)


class NoAnswer(Exception):
    """The endpoint gave no description; the message says why."""


def _reads(experiment: Experiment) -> Asking:
    endpoint = experiment.settings.labels.endpoint
    assert endpoint is not None, "asked for by feature_stages"
    return Asking(tuple(experiment.submodules), **endpoint.model_dump())


def make_endpoint_labels(work: Work, asking: Asking) -> Made:
    """Ask about the features of the largest effects, one after the other.

    Raises:
        ExperimentError: the endpoint answers nothing at all.
    """
    rows, failed, in_turn = [], 0, 0
    why = ""
    wanted = _wanted(work.store, asking.n_features)
    texts = read_texts(work.store)
    for n, (submodule, feature) in enumerate(wanted, start=1):
        weights, text = card_text(work.store, texts, submodule, feature)
        try:
            label = ask(asking, text)
        except NoAnswer as error:
            failed, in_turn, why = failed + 1, in_turn + 1, str(error)
            if in_turn == _PATIENCE and not rows:
                raise ExperimentError(
                    f"labels.endpoint: {asking.url} gave no description of {in_turn} features in "
                    f"turn ({why}). Start it, correct the address, or leave labels.endpoint out."
                ) from None
            continue
        in_turn = 0
        rows.append(_row(asking, submodule, feature, label, weights))
        work.say(f"described: {n} of {len(wanted)} features")
    if failed:
        work.say(f"{failed} of {len(wanted)} features were not described; the last: {why}")
    return Made(TABLES["labels"].build(rows), {"not_described": failed})


def _row(
    asking: Asking, submodule: str, feature: int, label: str, weights: str | None
) -> dict[str, Any]:
    nothing = {column.name: None for column in TABLES["labels"].schema if column.nullable}
    return {
        **nothing,
        "submodule": submodule,
        "basis": "features",
        "feature": feature,
        "text": label,
        "by": f"endpoint {asking.model}",
        "shown": True,
        "stale": False,
        "weights": weights,
    }


def _wanted(store: ArtifactStore, n: int) -> list[tuple[str, int]]:
    """The features with the largest effects in any circuit."""
    largest: dict[tuple[str, int], float] = {}
    for row in store.read(FEATURE_CIRCUITS, ["submodule", "feature", "effect"]).to_pylist():
        key = row["submodule"], row["feature"]
        largest[key] = max(largest.get(key, 0.0), abs(row["effect"]))
    return sorted(largest, key=lambda key: -largest[key])[:n]


def card_text(
    store: ArtifactStore, texts: Sequence[str], submodule: str, feature: int
) -> tuple[str | None, str]:
    """Hash of a feature's dictionary, and its card as text."""
    head = _of_feature(store.read(cards(submodule)), feature)[0]
    pieces = [
        "".join(
            _marked(texts[token], value / head["max_activation"])
            for token, value in zip(row["tokens"], row["activations"], strict=True)
        )
        for row in _of_feature(store.read(card_contexts(submodule)), feature)
    ]
    promoted = ", ".join(json.dumps(texts[token]) for token in head["promoted"])
    return head["weights"], "\n\n".join([*pieces, f"Promotes: {promoted}"])


def _of_feature(table: Any, feature: int) -> list[dict[str, Any]]:
    rows = frame(table)
    own = (rows["basis"] == "features") & (rows["feature"] == feature)
    return table.filter(own.to_numpy()).to_pylist()


def _marked(text: Any, share: float) -> str:
    if share <= 0.05:
        return text
    return f"««{text}»»" if share > 0.5 else f"«{text}»"


def ask(asking: Asking, card: str, instruction: str = INSTRUCTION) -> str:
    """What is answered about a card, a description: one line of at most 200 characters.

    Raises:
        NoAnswer: no answer in time, an error, or one that is no description.
    """
    body = {
        "model": asking.model,
        "temperature": 0,
        "messages": [
            {"role": "system", "content": instruction},
            {"role": "user", "content": card},
        ],
    }
    headers = {"Content-Type": "application/json"}
    if asking.key_variable and (key := os.environ.get(asking.key_variable)):
        headers["Authorization"] = f"Bearer {key}"
    address = asking.url.rstrip("/") + "/chat/completions"
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=asking.timeout) as response:
            answer = response.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        # What the server says may hold the key; its status does not.
        status = error.code if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        raise NoAnswer(f"no answer: {status}") from None
    return _line(answer)


def _line(answer: bytes) -> str:
    try:
        content: Any = json.loads(answer)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise NoAnswer("an answer of another form") from None
    if not isinstance(content, str):
        raise NoAnswer("an answer without text")
    label = harmless(" ".join(content.split()).strip(" \"'"))
    if not label or len(label) > _LONGEST:
        raise NoAnswer("an answer that is not one short line")
    return label


def _inputs(work: Work, asking: Asking) -> Mapping[str, str]:
    content = work.store.content
    every = (content(key(s)) for s in asking.submodules for key in (cards, card_contexts))
    fixed = {key.path: content(key) for key in (VOCABULARY, FEATURE_CIRCUITS)}
    return {**fixed, "cards": together(every)}


def show_endpoint_labels(work: Work, _asking: Asking) -> Metadata:
    """What was answered."""
    rows = work.store.read(ENDPOINT_LABELS, ["submodule", "feature", "text"]).to_pylist()
    return {
        "described": len(rows),
        "not described": work.store.notes(ENDPOINT_LABELS)["not_described"],
        "labels": records(rows[:_SHOWN]),
    }


ENDPOINT_LABELS_STAGE = TableStage(
    name="endpoint_labels",
    group="features",
    description="What a language model says of features, from their cards.",
    kinds=frozenset({"parquet"}),
    key=ENDPOINT_LABELS,
    deps=always("vocabulary", "feature_circuits", "cards"),
    on_request=lambda _asking: True,  # answers may cost money
    reads=_reads,
    inputs=_inputs,
    make=make_endpoint_labels,
    show=show_endpoint_labels,
)
