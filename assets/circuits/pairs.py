"""Stage 6, for contrastive pairs: circuits by position and their faithfulness (section 3)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.circuits.stages import lineage, load_circuit, strongest_nodes, write_circuit
from assets.engine.automation import rerun_on_new_data
from assets.engine.loading import (
    load_dictionaries_of,
    load_model_of,
    load_tokenizer_of,
    model_identity,
    tokenizer_identity,
)
from assets.engine.stage import MODEL_POOL, Made, Metadata, Stage, TableStage, Work, on
from assets.engine.store import Recipe, hash_place
from assets.plots import curves, picture
from assets.settings import AgreementSettings, Experiment, ExperimentError
from assets.tables.conversions import circuit_tables, read_nodes
from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    from core.circuit import Attributed
    from core.inputs import Inputs
    from core.types import Node

_EVALUATION = ("m_full", "m_empty", "m_circuit", "m_complement", "faithfulness", "completeness")
LOWEST, HIGHEST = 1e-4, 1.0

Pair = dict[str, str]


@dataclass(frozen=True)
class Pairs:
    """Contrastive pairs ready to run on.

    Attributes:
        inputs: the pairs.
        n_unusable: pairs of the file that could not be used.
        tokens: what stands at each position of the first pair, if all are of one length.
    """

    inputs: Inputs
    n_unusable: int
    tokens: tuple[str, ...] | None


def read_pairs(path: str) -> list[Pair]:
    """The rows of a file of pairs.

    Raises:
        ExperimentError: the file is not there, or not JSON lines of pairs.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise ExperimentError(f"pairs in {path} cannot be read: {error}") from None
    keys = {"clean_prefix", "patch_prefix", "clean_answer", "patch_answer"}
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not keys <= row.keys():
            raise ExperimentError(f"line {number} of {path} must have {', '.join(sorted(keys))}.")
    return rows


def without(rows: Sequence[Pair], known: Sequence[Pair]) -> list[Pair]:
    """Those rows whose prefixes and answers are not among `known`.

    The authors' held-out files overlap their training files almost wholly.
    """
    seen = {_content(row) for row in known}
    return [row for row in rows if _content(row) not in seen]


def _content(row: Pair) -> tuple[str, ...]:
    return (row["clean_prefix"], row["patch_prefix"], row["clean_answer"], row["patch_answer"])


def prepare_pairs(
    work: Work, rows: Sequence[Pair], n_pairs: int, by_position: bool, path: str
) -> Pairs:
    """The first usable pairs of a file; by position, only those of the most frequent length."""
    import torch

    from core.inputs import tokenize_pairs

    tokenizer = load_tokenizer_of(work.experiment)
    if not rows:
        raise ExperimentError(f"{path} has no pairs that are not in the training file too.")
    bos = tokenizer.bos_token_id if work.experiment.settings.corpus.bos else None
    inputs, kept = tokenize_pairs(tokenizer, list(rows), bos=bos)
    lengths = inputs.mask.sum(1)
    usable = torch.arange(len(kept))
    if by_position:
        length, _ = Counter(lengths.tolist()).most_common(1)[0]
        usable = (lengths == length).nonzero().flatten()
    chosen = inputs.select(usable[:n_pairs])
    first = None
    if bool(chosen.mask.all()):
        first = tuple(tokenizer.decode([token]) for token in chosen.clean[0].tolist())
    return Pairs(chosen, len(rows) - len(usable), first)


def _pairs(work: Work, name: str) -> tuple[Pairs, Pairs]:
    settings = _settings(work.experiment)
    files = settings.pairs[name]
    train_path, test_path = map(work.experiment.resolve, (files.train, files.test))
    train = read_pairs(train_path)
    test = without(read_pairs(test_path), train)
    positions = settings.by_position
    found = prepare_pairs(work, train, settings.n_train, positions, train_path)
    judged = prepare_pairs(work, test, settings.n_test, positions, test_path)
    if positions and found.inputs.clean.shape[1] != judged.inputs.clean.shape[1]:
        raise ExperimentError(
            f"pairs of {name} have {found.inputs.clean.shape[1]} tokens for training and "
            f"{judged.inputs.clean.shape[1]} for testing: a circuit by position needs the same. "
            "Set agreement.by_position: false, or give files of one template."
        )
    return found, judged


# -- circuits -------------------------------------------------------------------------------------


def make_agreement_circuits(work: Work) -> Made:
    """The circuit of each structure, from its training pairs."""
    stage, rows = AGREEMENT_CIRCUITS, []
    recipe = stage.recipe(work, {"dictionary_set": work.store.content("dictionary_set")})
    for name in _settings(work.experiment).pairs:
        pairs, _ = _pairs(work, name)
        rows.append(_make_circuit(work, name, pairs, recipe))
        work.say(f"{name}: {rows[-1]['n_nodes']} nodes from {rows[-1]['n_pairs']} pairs")
    return Made(TABLES["agreement_circuits"].build(rows))


def _make_circuit(work: Work, name: str, pairs: Pairs, recipe: Recipe) -> dict[str, Any]:
    settings = _settings(work.experiment)
    found = _attribute(work, pairs)
    circuit = found.circuit(
        node_threshold=settings.node_threshold,
        edge_threshold=settings.edge_threshold,
        edges=work.experiment.settings.circuits.estimator != "exact",
        settings=lineage(work.experiment, name, recipe.inputs),
        tokens=pairs.tokens if settings.by_position else None,
    )
    # Every node that any threshold of the faithfulness curve keeps.
    effects = found.circuit(node_threshold=LOWEST, edge_threshold=0.0, edges=False)
    nodes = circuit_tables(name, effects)["nodes"]
    work.store.write(f"agreement/{name}/effects", nodes, recipe, like="nodes")
    title = f"{work.experiment.name}: {name}"
    write_circuit(work.store, f"agreement/{name}", name, circuit, recipe, title)
    return {
        "name": name,
        "n_pairs": circuit.n_examples,
        "n_unusable": pairs.n_unusable,
        "n_nodes": len(circuit.nodes),
        "n_edges": len(circuit.edges),
        "metric_clean": circuit.metric_clean,
        "metric_patch": circuit.metric_patch,
    }


def _attribute(work: Work, pairs: Pairs) -> Attributed:
    from core.circuit import attribute

    how = work.experiment.settings.circuits
    return attribute(
        load_model_of(work.experiment),
        load_dictionaries_of(work.experiment, work.store),
        pairs.inputs,
        estimator=how.estimator,
        steps=how.steps,
        rule=how.rule,
        by_position=_settings(work.experiment).by_position,
        budget_bytes=work.experiment.budget_bytes,
    )


def show_agreement_circuits(work: Work) -> Metadata:
    """Sizes, and the strongest nodes of each structure."""
    rows = work.store.read("agreement_circuits").to_pylist()
    shown: dict[str, Any] = {"circuits": dg.MetadataValue.table([dg.TableRecord(r) for r in rows])}
    for row in rows:
        circuit = load_circuit(work.store, f"agreement/{row['name']}")
        if circuit is not None and circuit.nodes:
            shown[f"strongest nodes: {row['name']}"] = strongest_nodes(circuit)
        place = work.store.path(f"agreement/{row['name']}/circuit", ".svg")
        shown[f"picture: {row['name']}"] = dg.MetadataValue.path(place)
    return shown


# -- faithfulness ---------------------------------------------------------------------------------


def make_agreement_evaluations(work: Work) -> Made:
    """Faithfulness over a range of thresholds, on pairs the effects were not measured on."""
    rows = []
    for name in _settings(work.experiment).pairs:
        _, test = _pairs(work, name)
        nodes = read_nodes(work.store.read(f"agreement/{name}/effects"))
        for errors in work.experiment.settings.evaluations.errors:
            rows += _curve(work, name, errors, nodes, test.inputs)
        work.say(f"{name}: judged on {test.inputs.n_examples} pairs")
    return Made(TABLES["agreement_evaluations"].build(rows))


def _curve(
    work: Work, name: str, errors: str, nodes: Sequence[Node], inputs: Inputs
) -> Iterator[dict[str, Any]]:
    from core.evaluate import Evaluator

    settings = _settings(work.experiment)
    evaluator = Evaluator(
        load_model_of(work.experiment),
        load_dictionaries_of(work.experiment, work.store),
        inputs,
        ablation="mean",
        errors=errors,
        start_layer=settings.start_layer,
        budget_bytes=work.experiment.budget_bytes,
    )
    for threshold in thresholds(settings.n_thresholds):
        found = evaluator.evaluate([node for node in nodes if abs(node.effect) > threshold])
        yield {
            **{metric: getattr(found, metric) for metric in _EVALUATION},
            "name": name,
            "errors": errors,
            "threshold": threshold,
            "n_pairs": found.n_examples,
            "n_nodes": found.n_nodes,
        }


def _evaluation_inputs(work: Work) -> Mapping[str, str]:
    effects = {
        name: work.store.content(f"agreement/{name}/effects")
        for name in _settings(work.experiment).pairs
    }
    return {"dictionary_set": work.store.content("dictionary_set"), **effects}


def thresholds(n: int) -> list[float]:
    """`n` thresholds from 1e-4 to 1, neighbours in equal ratios."""
    return [LOWEST * (HIGHEST / LOWEST) ** (i / (n - 1)) for i in range(n)]


def show_agreement_evaluations(work: Work) -> Metadata:
    """Faithfulness against the number of nodes, a picture for each policy for errors."""
    rows = work.store.read("agreement_evaluations").to_pylist()
    shown: dict[str, Any] = {}
    for errors in work.experiment.settings.evaluations.errors:
        lines = {}
        for name in _settings(work.experiment).pairs:
            own = [r for r in rows if r["name"] == name and r["errors"] == errors]
            lines[name] = ([r["n_nodes"] for r in own], [r["faithfulness"] for r in own])
        shown[f"errors: {errors}"] = picture(curves(lines, "nodes", "faithfulness"))
    return shown


def _settings(experiment: Experiment) -> AgreementSettings:
    assert experiment.settings.agreement is not None, "asked for by agreement_stages"
    return experiment.settings.agreement


def _outside(experiment: Experiment) -> Mapping[str, str]:
    files = _settings(experiment).pairs
    hashes = {
        f"{name} {side}": hash_place(experiment.resolve(getattr(files[name], side)))
        for name in files
        for side in ("train", "test")
    }
    return {
        "model": model_identity(experiment),
        "tokenizer": tokenizer_identity(experiment),
        **hashes,
    }


def _circuit_settings(experiment: Experiment) -> Mapping[str, object]:
    how = experiment.settings.circuits.model_dump(
        mode="json", include={"estimator", "steps", "rule"}
    )
    own = _settings(experiment).model_dump(
        mode="json", exclude={"n_test", "n_thresholds", "start_layer"}
    )
    return {**how, **own, "bos": experiment.settings.corpus.bos}


def _evaluation_settings(experiment: Experiment) -> Mapping[str, object]:
    own = _settings(experiment).model_dump(
        mode="json", exclude={"node_threshold", "edge_threshold", "n_train"}
    )
    errors = list(experiment.settings.evaluations.errors)
    return {**own, "bos": experiment.settings.corpus.bos, "errors": errors}


AGREEMENT_CIRCUITS = TableStage(
    name="agreement_circuits",
    group="agreement",
    description=(
        "Circuits of subject-verb agreement from contrastive pairs that differ in one noun's "
        "number; each position is a node of its own."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    deps=on("dictionary_set"),
    settings=_circuit_settings,
    outside=_outside,
    pool=MODEL_POOL,
    automation=rerun_on_new_data,
    make=make_agreement_circuits,
    show=show_agreement_circuits,
)

AGREEMENT_EVALUATIONS = TableStage(
    name="agreement_evaluations",
    group="agreement",
    description=(
        "Faithfulness and completeness of agreement circuits of every size, on pairs that were "
        "not used to find them."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    deps=on("dictionary_set", "agreement_circuits"),
    settings=_evaluation_settings,
    outside=_outside,
    pool=MODEL_POOL,
    automation=rerun_on_new_data,
    inputs=_evaluation_inputs,
    make=make_agreement_evaluations,
    show=show_agreement_evaluations,
)


def agreement_stages(experiment: Experiment) -> list[Stage]:
    """The stages of contrastive pairs; none if the experiment names no pair files."""
    if experiment.settings.agreement is None:
        return []
    return [AGREEMENT_CIRCUITS, AGREEMENT_EVALUATIONS]
