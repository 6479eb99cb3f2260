"""Stage 7: a card for each feature: when it is active, and what that does to predictions."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from assets.corpus.contexts import Contexts, read_contexts
from assets.corpus.stages import training_contexts
from assets.corpus.text import harmless
from assets.corpus.vocabulary import read_texts
from assets.engine.recipe import digest
from assets.engine.stage import Job, Made, Metadata, PartitionedStage, Work, always
from assets.engine.store import ArtifactStore, Content
from assets.plots import records
from assets.settings import CardSettings, Experiment
from assets.tables.places import (
    CONTEXTS,
    DICTIONARY_SET,
    FEATURE_CIRCUITS,
    FEATURE_DENSITIES,
    card_contexts,
    cards,
)
from assets.tables.schemas import TABLES

if TYPE_CHECKING:
    from torch import Tensor

    from core.cards.collect import Collected, Excerpts, Showing, Units
    from core.cards.meaning import Tokens
    from core.models import LanguageModel

Basis = Literal["features", "neurons"]
BASES: tuple[Basis, ...] = ("features", "neurons")
_N_STREAMS = 64
_SHOWN = 12


@dataclass(frozen=True)
class Carding:
    """Which features of one submodule get a card and what is on it; see `CardSettings`."""

    features: Literal["circuits", "all"]
    n_random: int
    n_neurons: int
    n_contexts: int
    n_held_out: int
    n_strongest: int
    n_per_quantile: int
    n_before: int
    n_after: int
    n_tokens: int
    n_ablated: int
    seed: int


def card_settings(experiment: Experiment) -> CardSettings:
    """The section about cards of an experiment that has it."""
    settings = experiment.settings.cards
    assert settings is not None, "asked for by feature_stages"
    return settings


def _reads(experiment: Experiment, _submodule: str) -> Carding:
    return Carding(**card_settings(experiment).model_dump())


def card_texts(store: ArtifactStore, n_contexts: int, n_held_out: int) -> Contexts:
    """The contexts that cards are made from."""
    return training_contexts(store, n_held_out)[:n_contexts]


def unseen_texts(store: ArtifactStore, n_contexts: int, n_held_out: int) -> Contexts | list[Any]:
    """The contexts from the corpus's end that no card is made from, none of them the same text."""
    seen = {tuple(tokens) for tokens in card_texts(store, n_contexts, n_held_out).tokens}
    last = read_contexts(store)[len(training_contexts(store, n_held_out)) :]
    return [context for context in last if tuple(context.tokens) not in seen]


# -- which features -------------------------------------------------------------------------------


def _of_circuits(store: ArtifactStore) -> dict[str, list[int]]:
    """Features of any circuit, by submodule, ascending."""
    found: dict[str, set[int]] = {}
    for row in store.read(FEATURE_CIRCUITS, ["submodule", "feature"]).to_pylist():
        found.setdefault(row["submodule"], set()).add(row["feature"])
    return {submodule: sorted(features) for submodule, features in found.items()}


def _inputs(work: Work, settings: Mapping[str, Carding]) -> Mapping[str, Mapping[str, str]]:
    store, of_circuits = work.store, _of_circuits(work.store)
    rows = store.read(DICTIONARY_SET, ["submodule", "weights"]).to_pylist()
    weights = {row["submodule"]: row["weights"] for row in rows}
    texts = store.content(CONTEXTS)
    return {
        submodule: {
            CONTEXTS.path: texts,
            "weights": Content(weights[submodule], store.origin(DICTIONARY_SET)),
            "features of circuits": Content(
                digest(of_circuits.get(submodule, [])), store.origin(FEATURE_CIRCUITS)
            ),
        }
        for submodule in settings
    }


def _chosen(
    submodule: str, how: Carding, of_circuits: Sequence[int], densities: np.ndarray
) -> dict[int, str]:
    """The features that get a card, ascending, and why."""
    rng = np.random.default_rng([how.seed, zlib.crc32(submodule.encode())])
    # In the order of chance, living ones first; those of circuits are left out.
    others = np.setdiff1d(rng.permutation(len(densities)), of_circuits, assume_unique=True)
    living = others[densities[others] > 0]
    drawn = rng.permutation(living)[: how.n_random].tolist()
    why = dict.fromkeys(range(len(densities)), "all") if how.features == "all" else {}
    why |= dict.fromkeys(drawn, "random") | dict.fromkeys(of_circuits, "circuits")
    return dict(sorted(why.items()))


def _neurons(submodule: str, how: Carding, width: int) -> list[int]:
    rng = np.random.default_rng([how.seed, zlib.crc32(submodule.encode()), 1])
    return sorted(rng.permutation(width)[: how.n_neurons].tolist())


# -- making them ----------------------------------------------------------------------------------


def make_cards(work: Work, jobs: Sequence[Job[Carding]]) -> Iterator[tuple[str, Made]]:
    """The cards of these submodules, from one run of the model over the corpus."""
    from core.cards.collect import collect
    from core.cards.meaning import promoted, readout

    how, model = jobs[0].settings, work.load.model()
    contexts = card_texts(work.store, how.n_contexts, how.n_held_out)
    documents, tokens = [c.document for c in contexts], [list(t) for t in contexts.tokens]
    submodules = [job.key for job in jobs]
    why, wanted = _wanted(work, how, submodules)
    collected = collect(
        model,
        wanted,
        tokens,
        documents=documents,
        showing=_showing(how),
        progress=work.say,
    )
    changes = _changes(work, how, wanted, why, collected, tokens)
    reads = readout(model, _final_streams(model, tokens))
    weights = {job.key: job.recipe.inputs["weights"] for job in jobs}
    for submodule in submodules:
        heads, excerpts = [], []
        for basis in BASES:
            name = f"{submodule}/{basis}"
            units, one = wanted[name], collected.pop(name)
            common = {
                "submodule": submodule,
                "basis": basis,
                "weights": weights[submodule] if basis == "features" else None,
            }
            both = promoted(model, units, reads, how.n_tokens)
            heads.append(heads_table(common, units, why[name], one, both, changes.get(name)))
            excerpts.append(excerpts_table(basis, units, one.excerpts, tokens, documents))
        n_cards = sum(len(table) for table in heads)
        work.say(f"{submodule}: {n_cards} cards")
        beside = {card_contexts(submodule): pa.concat_tables(excerpts)}
        yield submodule, Made(pa.concat_tables(heads), beside=beside)


def _showing(how: Carding) -> Showing:
    from core.cards.collect import Showing

    return Showing(how.n_strongest, how.n_per_quantile, how.n_before, how.n_after, how.seed)


def _wanted(
    work: Work, how: Carding, submodules: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, Units]]:
    """Why each feature and neuron gets a card, and what they are, by submodule and basis."""
    dictionaries, of_circuits = work.load.dictionaries(), _of_circuits(work.store)
    densities = work.store.read(FEATURE_DENSITIES, ["submodule", "density"])
    of_submodule = densities["submodule"].to_numpy(zero_copy_only=False)
    density = densities["density"].to_numpy()
    why: dict[str, list[str]] = {}
    features: dict[str, Sequence[int]] = {}
    for submodule in submodules:
        dictionary = dictionaries[submodule]
        own = density[of_submodule == submodule]
        chosen = _chosen(submodule, how, of_circuits.get(submodule, []), own)
        neurons = _neurons(submodule, how, dictionary.d)
        for basis, found, reasons in (
            ("features", list(chosen), list(chosen.values())),
            ("neurons", neurons, ["random"] * len(neurons)),
        ):
            features[f"{submodule}/{basis}"] = found
            why[f"{submodule}/{basis}"] = reasons
    return why, units_of(work, features)


def units_of(work: Work, features: Mapping[str, Sequence[int]]) -> dict[str, Units]:
    """Features and neurons by submodule and basis, ``mlp_2/features``, as the core takes them."""
    import torch

    from core.cards.collect import Units
    from core.dictionaries import identity_dictionary

    dictionaries = work.load.dictionaries()
    units = {}
    for name, found in features.items():
        submodule, basis = name.split("/")
        dictionary = dictionaries[submodule]
        device = dictionary.encoder.device
        if basis == "neurons":
            dtype = dictionary.encoder.dtype
            dictionary = identity_dictionary(dictionary.d, device=device, dtype=dtype)
        index = torch.tensor(list(found), dtype=torch.long, device=device)
        units[name] = Units(submodule, dictionary, index)
    return units


def _changes(
    work: Work,
    how: Carding,
    wanted: Mapping[str, Units],
    why: Mapping[str, Sequence[str]],
    collected: Mapping[str, Collected],
    tokens: Sequence[Sequence[int]],
) -> dict[str, tuple[Tensor, Tokens]]:
    """Which units were ablated, and the tokens that this moves, by name."""
    import torch

    from core.cards.collect import Units
    from core.cards.meaning import moved

    if not how.n_ablated:
        return {}
    places = {
        name: torch.tensor([i for i, reason in enumerate(reasons) if reason != "all"]).long()
        for name, reasons in why.items()
    }
    some = {
        name: Units(units.submodule, units.dictionary, units.features[places[name]])
        for name, units in wanted.items()
    }
    changes = moved(
        work.load.model(),
        some,
        {name: one.excerpts.of(places[name]) for name, one in collected.items()},
        tokens,
        n_ablated=how.n_ablated,
        k=how.n_tokens,
        budget_bytes=work.budget_bytes // 2,
        progress=work.say,
    )
    return {name: (places[name], change) for name, change in changes.items()}


def _final_streams(model: LanguageModel, tokens: Sequence[Sequence[int]]) -> Tensor:
    """The final residual stream at the last token of some contexts, spread over the corpus."""
    import torch

    from core.inputs import pad
    from core.readout import at_last

    some = tokens[:: max(1, len(tokens) // _N_STREAMS)][:_N_STREAMS]
    streams = []
    for start in range(0, len(some), 16):
        recording = model.record(*pad(some[start : start + 16]))
        last = recording.outputs[f"resid_{model.n_layers - 1}"]
        streams.append(at_last(last, recording.last))
    return torch.cat(streams)


# -- as tables ------------------------------------------------------------------------------------


def _lists(values: Any, lengths: Any = None) -> pa.Array:
    """Rows of a matrix as lists; with `lengths`, flat values cut into lists."""
    values = np.asarray(values)
    if lengths is None:
        lengths = np.full(len(values), values.shape[1])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values.reshape(-1)))


def _table(name: str, columns: Mapping[str, Any]) -> pa.Table:
    schema = TABLES[name].schema
    arrays = [pa.array(columns[field.name]) for field in schema]
    return pa.Table.from_arrays(arrays, names=schema.names).cast(schema)


def heads_table(
    common: Mapping[str, Any],
    units: Units,
    why: Sequence[str],
    one: Collected,
    both: tuple[Tokens, Tokens],
    change: tuple[Tensor, Tokens] | None,
) -> pa.Table:
    """Rows of feature_cards."""
    n = len(units.features)
    mean = one.total / one.n_active.clamp(min=1)
    token: list[Any] = [None] * n
    value: list[Any] = [None] * n
    if change is not None:
        for i, tokens, values in zip(
            change[0].tolist(), change[1].token.tolist(), change[1].value.tolist(), strict=True
        ):
            if one.n_active[i] > 0:
                token[i], value[i] = tokens, values
    return _table(
        "feature_cards",
        {
            **{key: pa.array([text] * n, pa.string()) for key, text in common.items()},
            "feature": units.features.cpu().numpy(),
            "chosen": pa.array(list(why), pa.string()),
            "density": (one.n_active / one.n_tokens).numpy(),
            "n_active": one.n_active.numpy(),
            "n_contexts": one.n_contexts.numpy(),
            "max_activation": one.largest.numpy(),
            "mean_activation": mean.numpy(),
            "histogram_edges": _lists(one.edges),
            "histogram_counts": _lists(one.counts),
            "promoted": _lists(both[0].token),
            "promoted_values": _lists(both[0].value),
            "suppressed": _lists(both[1].token),
            "suppressed_values": _lists(both[1].value),
            "moved": pa.array(token, pa.list_(pa.int32())),
            "moved_values": pa.array(value, pa.list_(pa.float32())),
        },
    )


def excerpts_table(
    basis: Basis,
    units: Units,
    excerpts: Excerpts,
    tokens: Sequence[Sequence[int]],
    documents: Sequence[int],
) -> pa.Table:
    """Rows of card_contexts."""
    lengths, start = excerpts.length.numpy(), excerpts.start.numpy()
    row, width = excerpts.row.numpy(), excerpts.share.shape[1]
    flat = np.concatenate([np.asarray(one, np.int32) for one in tokens])
    begins = np.concatenate([[0], np.cumsum([len(one) for one in tokens])])
    inside = np.arange(width) < lengths[:, None]
    places = (begins[row] + start)[:, None] + np.arange(width)
    quantile = excerpts.quantile.numpy()
    return _table(
        "card_contexts",
        {
            "basis": pa.array([basis] * len(row), pa.string()),
            "feature": units.features.cpu().numpy()[excerpts.unit.numpy()],
            "quantile": pa.array(quantile, mask=quantile < 0),
            "rank": excerpts.rank.numpy(),
            "document": np.asarray(documents)[row],
            "window": row,
            "pos": excerpts.pos.numpy(),
            "start": start,
            "tokens": _lists(flat[places[inside]], lengths),
            "activations": _lists(excerpts.activations.numpy()[inside], lengths),
        },
    )


# -- shown ----------------------------------------------------------------------------------------


def show_cards(work: Work, submodule: str) -> Metadata:
    """How many cards there are, and the first of those of circuits."""
    columns = ["basis", "feature", "chosen", "density", "max_activation", "promoted"]
    rows = work.store.read(cards(submodule), columns).to_pylist()
    texts = read_texts(work.store)
    of_circuits = [row for row in rows if row["chosen"] == "circuits"]
    return {
        "cards": len(rows),
        "never active": sum(row["max_activation"] == 0 for row in rows),
        "of circuits": records(
            {
                "feature": row["feature"],
                "density": row["density"],
                "largest activation": row["max_activation"],
                "promotes": harmless(
                    " ".join(repr(texts[t]) for t in row["promoted"][:5] if t < len(texts))
                ),
            }
            for row in of_circuits[:_SHOWN]
        ),
    }


CARDS_STAGE = PartitionedStage(
    name="cards",
    group="features",
    description=(
        "A card for each feature of a circuit: how often and where it is active, the tokens that "
        "it promotes, and those that its ablation moves."
    ),
    kinds=frozenset({"pytorch", "parquet"}),
    key=cards,
    beside=["card_contexts"],
    partitions=lambda experiment: experiment.submodules,
    deps=always("contexts", "vocabulary", "dictionary_set", "feature_circuits"),
    needs=always("model", "dictionaries"),
    reads=_reads,
    inputs=_inputs,
    make=make_cards,
    show=show_cards,
)
