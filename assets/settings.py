"""What an experiment's YAML file may say, and nothing else: one model per section.

Every section refuses keys it does not know. Paths are kept as written; `Experiment.resolve` takes
a relative one from the folder of the YAML file. Nothing here needs torch or a network.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from core.options import (
    CHOOSE_K,
    VARIANTS,
    WITH_DICTIONARIES,
    WITHOUT_K,
    Ablation,
    Algorithm,
    DictionaryKind,
    Dtype,
    ErrorNodes,
    EstimatorName,
    Format,
    Pooling,
    Reduction,
    Representation,
    Rule,
    SingleMetric,
    TokenizerReading,
    Variant,
)

CHOSEN = "chosen"
"""What the clustering whose clusters get circuits is called among those compared with it."""

RENAMED: Mapping[str, str] = {
    "agreement": "tasks",
    "tasks.n_train": "tasks.n_examples",
    "tasks.n_test": "tasks.n_evaluated",
    "tasks.n_thresholds": "evaluations.n_thresholds",
    "dictionaries.l1": "dictionaries.sparsity",
    "evaluations.errors": "evaluations.error_nodes",
}
"""New names of keys by what they were called, in the order in which they are replaced."""


class ExperimentError(Exception):
    """An experiment that cannot be run as it is written."""


# -- scalars --------------------------------------------------------------------------------------


class Plain(str):
    """Text without quotes: a number, true or false where one is meant, and text elsewhere."""

    __slots__ = ()
    __repr__ = str.__str__


_YES_OR_NO = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def scalar(value: Any) -> Any:
    """The number, true or false that plain text stands for; anything else as it is."""
    if not isinstance(value, Plain):
        return value
    if value.lower() in _YES_OR_NO:
        return _YES_OR_NO[value.lower()]
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return str(value)


def _whole(value: Any) -> Any:
    """1e4 is a whole number too."""
    number = scalar(value)
    return number if isinstance(number, float) else value


def _clash(told: str) -> PydanticCustomError:
    return PydanticCustomError("clash", "{told}", {"told": told})


def _option(value: Any) -> Any:
    value = scalar(value)
    is_number = isinstance(value, int | float) and abs(value) <= _MOST
    if not is_number and not isinstance(value, str):
        raise _clash(f"an option is text, a number up to {_MOST:g}, true or false.")
    return value


def _name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", name) or name == CHOSEN:
        raise _clash(
            "a name is made of letters, digits and underscores, at most 64 of them, and is not "
            f"{CHOSEN}."
        )
    if re.fullmatch(r"k\d{5,}", name):
        raise _clash("is what a cluster is called: take another name.")
    return name


def _cron(written: str) -> str:
    from dagster._utils.schedules import is_valid_cron_string

    if not is_valid_cron_string(written):
        raise _clash(f"'{written}' is no cron expression such as 0 3 * * 0 (Sundays at 3:00).")
    return written


def _apart(named: dict[str, Any]) -> dict[str, Any]:
    if len({name.lower() for name in named}) < len(named):
        raise _clash("names that differ in upper and lower case alone are one file on some disks.")
    return named


def _device(device: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise _clash(f"'{device}' is none of auto, cpu, cuda, cuda:1.")
    return device


def _address(address: str) -> str:
    if not re.match(r"https?://", address):
        raise _clash("an address begins with http:// or https://.")
    return address.rstrip("/")


def _artifacts(place: str) -> str:
    if not is_address(place):
        return place
    if place.startswith("file:"):
        raise _clash("a folder on this machine is written as a path.")
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#:\s][^?#\s]*", place) or ".." in place:
        raise _clash("an address is SCHEME://BUCKET or SCHEME://BUCKET/PREFIX, without ?, # and ..")
    return place.rstrip("/")


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float | str) else value


def _all_is_none(value: Any) -> Any:
    return None if value == "all" else value


_MOST = 1e9
Text = Annotated[str, Field(min_length=1, max_length=1_000)]
Name = Annotated[str, AfterValidator(_name)]
Cron = Annotated[str, AfterValidator(_cron)]
Whole = Annotated[int, BeforeValidator(_whole)]
Count = Annotated[Whole, Field(ge=1, le=1_000_000_000)]
CountOrZero = Annotated[Whole, Field(ge=0, le=1_000_000_000)]
Clusters = Annotated[Whole, Field(ge=1, le=100_000)]
Seed = Annotated[Whole, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0, le=_MOST)]
Share = Annotated[float, Field(ge=0, le=1)]
Value = Annotated[bool | int | float | str, BeforeValidator(_option)]
PositiveOrZero = Annotated[float, Field(ge=0, le=_MOST)]
Places = Annotated[
    tuple[Text, ...] | None,
    BeforeValidator(_all_is_none, json_schema_input_type=tuple[str, ...] | Literal["all"] | None),
]


# -- sections -------------------------------------------------------------------------------------

_Said = TypeVar("_Said")
Problem = tuple[tuple[str | int, ...], str]
"""Keys that lead to the place, and what is wrong there."""


def refuse(problems: Iterable[Problem]) -> None:
    """Raise for these problems inside of a validator; pydantic gathers those of all sections."""
    details: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError("clash", "{told}", {"told": told}),
            "loc": where,
            "input": None,
        }
        for where, told in problems
    ]
    if details:
        raise ValidationError.from_exception_data("experiment", details)


class Section(BaseModel):
    """A section of the file: frozen, so that it can key a cache, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    def clashes(self) -> Iterator[Problem]:
        """Keys of this section that are sound alone but not together."""
        return iter(())

    @model_validator(mode="after")
    def _refuse_clashes(self) -> Self:
        refuse(self.clashes())
        return self


class ModelSettings(Section):
    """The model that is explained."""

    source: Text
    """Folder written by save_pretrained, or a hub id."""
    n_layers: Annotated[Whole, Field(ge=1, le=1_000)]
    """Decoder layers; says which submodules exist before the model is loaded."""
    revision: Text | None = None
    """Branch, tag or commit on the hub."""
    tokenizer: TokenizerReading | None = None
    """Where transformers' class reads text otherwise than tokenizer.json: file (as tokenizer.json
    says) or class. Not needed where both read alike."""
    dtype: Dtype = "float32"
    """Number type of the weights."""
    device: Annotated[str, AfterValidator(_device)] = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    attn_input: bool = False
    """Put attn_L at the input of the attention's output projection, as Gemma Scope does."""
    memory_gb: Positive = 2.0
    """Memory for what one step of the work holds besides the model, in GB."""
    workers: Count | None = None
    """Circuits that are worked on at once, each by a process with its share of memory_gb: one for
    each core where not given, and always one on a GPU."""


class CorpusSettings(Section):
    """The text, and how it is cut into contexts."""

    source: Text
    """A .txt, .jsonl, .jsonl.zst or .parquet file, a folder of them, or a hub data set."""
    text_column: Text = "text"
    """Column that holds the text."""
    labels_column: Text | None = None
    """Column with one label per token, where the corpus says what determines each token."""
    separator: Text | None = None
    """What stands between documents of a .txt file."""
    split: Text = "train"
    """Split of a hub data set."""
    revision: Text | None = None
    """Branch, tag or commit of a hub data set."""
    n_documents: Count | None = None
    """Documents to read; all where not given."""
    n_positions: Annotated[Count, Field(ge=2, le=1_000_000)] = 128
    """Tokens kept of each document, from its beginning."""
    n_held_out: Count = 128
    """Contexts from its end, a tenth at most, that nothing trains on; dictionaries are measured
    on them."""
    bos: bool = False
    """Begin each context with the tokenizer's beginning-of-sequence token."""


class TrainSettings(Section):
    """Dictionaries trained here (App. B)."""

    source: Literal["train"] = "train"
    """Train them."""
    activations: Literal["cache", "model"] = "cache"
    """Read activations from a cache on disk, or run the model as they are needed, for budgets of
    tokens that no disk holds."""
    kind: DictionaryKind = "relu"
    """The activation; relu is the paper's."""
    n_features: Count | None = None
    """Features of each dictionary; expansion times the model's width where not given."""
    expansion: Count = 64
    """Features per dimension of the model."""
    k: Count = 32
    """Active features per token, for topk and batchtopk."""
    ks: dict[Text, Count] = Field(default_factory=dict)
    """The same for single submodules (attn_3) or kinds (attn), in place of k."""
    steps: Count = 120_000
    """Optimiser steps."""
    checkpoint_every: Count = 1_000
    """Steps between checkpoints that a killed training goes on from."""
    batch: Count = 16_384
    """Tokens per step."""
    lr: Annotated[Positive, Field(le=10)] = 1e-4
    """Learning rate of Adam."""
    sparsity: PositiveOrZero = 0.1
    """Weight of the sparsity penalty."""
    warmup: CountOrZero = 1_000
    """Steps over which the learning rate rises, at the start and after each resampling."""
    decay: CountOrZero = 0
    """Steps over which it falls to zero at the end."""
    sparsity_warmup: CountOrZero = 0
    """Steps over which the penalty rises at the start."""
    resample_every: CountOrZero = 25_000
    """Steps between resamplings of dead features; 0 for none; relu and gated only."""
    dead_after: Count = 12_500
    """Steps without activation after which a feature is dead."""
    tuning_steps: CountOrZero = 0
    """Steps in which the finished set is trained on together, in runs such as circuits have, so
    that these are smaller and can do without error nodes; relu and topk only."""
    tuning_lr: Annotated[Positive, Field(le=10)] = 1e-3
    """Learning rate of these steps."""
    tuning_sparsity: PositiveOrZero = 0.08
    """Weight of the sparsity penalty in these steps; relu only."""
    tuning_errors: bool = True
    """Tune for circuits with error nodes as well as without; if false, for those without alone,
    which are smaller then, while those with error nodes are worth nothing."""
    seed: Seed = 0
    """Of initialisation, shuffling, resampling and tuning."""
    buffer_mb: Positive = 1_024.0
    """Memory for the shuffling buffer, in MB."""
    cache_gb: Positive = 50.0
    """Most disk the activation cache may take, in GB."""

    def clashes(self) -> Iterator[Problem]:
        """Warm-up that never ends, tuning of what is not tuned, k of what has none."""
        if self.warmup >= self.steps:
            yield ("warmup",), f"{self.warmup} steps of warm-up leave none of {self.steps}."
        if self.tuning_steps and self.kind not in ("relu", "topk"):
            told = f"only relu and topk dictionaries are tuned, not {self.kind}: leave it out."
            yield ("tuning_steps",), told
        if self.ks and self.kind in WITHOUT_K:
            yield ("ks",), f"only topk and batchtopk have k active features, not {self.kind}."

    def k_of(self, submodule: str) -> int:
        """Active features per token of the dictionary of a submodule."""
        own = _of(self.ks, submodule)
        return self.k if own is None else own

    def k_problems(self, submodules: Sequence[str]) -> Iterator[Problem]:
        """Names in ks where no dictionary sits, and more active features than there are."""
        places = {*submodules, *(name.split("_")[0] for name in submodules)}
        for name in self.ks:
            if name not in places:
                told = "names no submodule with a dictionary, and no kind of one."
                yield ("ks", name), f"{told}{nearest(name, sorted(places))}"
        if self.kind in CHOOSE_K and self.n_features is not None:
            for key, k in {_key_of(self.ks, name): self.k_of(name) for name in submodules}.items():
                if k > self.n_features:
                    where = ("k",) if key is None else ("ks", key)
                    yield where, f"there are only {self.n_features} features."


def _key_of(named: Mapping[str, Any], submodule: str) -> str | None:
    """The submodule, or its kind, whichever is named."""
    return next((key for key in (submodule, submodule.split("_")[0]) if key in named), None)


def _of(named: Mapping[str, _Said], submodule: str) -> _Said | None:
    """What is named for the submodule, or for its kind."""
    key = _key_of(named, submodule)
    return None if key is None else named[key]


class ImportSettings(Section):
    """Dictionaries that somebody else trained."""

    source: Literal["import"]
    """Read them."""
    format: Format
    """Layout of the files; sfc is this project's own."""
    repository: Text
    """A folder, or a hub repository."""
    repositories: dict[Text, Text] = Field(default_factory=dict)
    """Others for single submodules (attn_3) or kinds (attn), in place of repository."""
    revision: Text | None = None
    """Branch, tag or commit on the hub."""
    archive: Text | None = None
    """A .zip in the repository that holds them; unpacked once, into the artifacts folder."""
    path: Text | None = None
    """Where a dictionary lies in the repository or archive; {submodule}, {kind}, {layer} and
    {site} (the authors' word for attn_3: attn_out_layer3) are filled in, {l0} and * stand for
    what is there: average_l0_{l0}."""
    paths: dict[Text, Text] = Field(default_factory=dict)
    """The same for single submodules (attn_3) or kinds (attn), in place of path."""
    options: dict[Text, Value] = Field(default_factory=dict)
    """Passed to the format's reader, e.g. normalize_decoder: false. With l0: 100, of several
    places that fit the path the one whose L0 is nearest is taken."""

    def clashes(self) -> Iterator[Problem]:
        """Options that are keys of their own."""
        for name in ("source", "format", "path", "submodule", "revision"):
            if name in self.options:
                yield ("options", name), "is no option of the reader: a key beside options says it."

    def path_of(self, submodule: str) -> str | None:
        """Where the dictionary of a submodule lies; None if the file does not say."""
        own = _of(self.paths, submodule)
        return self.path if own is None else own

    def repository_of(self, submodule: str) -> str:
        """The folder or hub repository with the dictionary of a submodule."""
        own = _of(self.repositories, submodule)
        return self.repository if own is None else own


class CheckSettings(Section):
    """What stops an experiment, and what it is warned about."""

    max_short_contexts: Share = 0.0
    """Stop where a larger share of the contexts is shorter than two tokens."""
    min_variance_explained: Annotated[float, Field(ge=-_MOST, le=1)] | None = 0.0
    """Stop where a dictionary explains no more of the variance; no limit where null."""
    min_l0: PositiveOrZero = 0.0
    """Stop where no more features of a dictionary are active per token."""
    min_alive: Share = 0.0
    """Stop where a smaller share of a dictionary's features is ever active."""
    min_largest_cluster: Count = 2
    """Stop where the largest cluster has fewer samples."""
    l0_factor: Annotated[float, Field(ge=1, le=_MOST)] = 1.25
    """Warn where measured L0 is this many times larger or smaller than a dictionary's k, or than
    the file of an imported one says."""
    low_variance_explained: Share = 0.5
    """Warn where an imported dictionary explains less of the variance."""


class FilterSettings(Section):
    """Which tokens are worth explaining: those the model predicts well (section 5)."""

    max_loss: Positive = 0.3
    """Keep an answer whose cross-entropy is below this, in nats; 0.1 or 0.3 in the paper."""
    min_context: Count = 4
    """Tokens that must stand before an answer."""
    stride: Count = 1
    """Least distance between two samples of one context, in tokens."""
    max_per_document: Count | None = None
    """Most samples from one document."""
    n_samples: Count | None = 8_192
    """Most samples in all; the whole corpus is read where null."""
    seed: Seed = 0
    """Of the draw within a document."""


class GroupingSettings(Section):
    """How samples are represented and grouped (section 5, App. H)."""

    representation: Representation = "features"
    """What a sample is: dense or dictionary activations, which features are active, hidden
    neurons, linear effects, or gradients."""
    submodules: Places = None
    """Where activations or effects are read; wherever dictionaries sit where not given, and
    every MLP for mlp_neurons."""
    reduction: Reduction = "last"
    """The last n_last positions side by side, or the sum over positions."""
    n_last: Count = 1
    """Positions kept when reduction is last."""
    equal_submodules: bool = False
    """Scale what each submodule gives to length 1, so that none decides by its norm."""
    algorithm: Algorithm = "kmeans"
    """Spectral clustering on angular similarity, or k-means."""
    k: Annotated[
        tuple[Clusters, ...],
        Field(min_length=1, max_length=100),
        BeforeValidator(_listed, json_schema_input_type=Clusters | tuple[Clusters, ...]),
    ] = (100,)
    """Clusters, or a list of counts to choose from (App. H.3)."""
    n_projected: Count = 30_000
    """Dimensions that gradients are projected to."""
    seed: Seed = 0
    """Of projection and clustering."""


class ClusteringSettings(GroupingSettings):
    """The clustering whose clusters get circuits."""

    max_clusters: Clusters | None = None
    """Circuits are found for at most this many, largest first; all where not given."""


class CircuitSettings(Section):
    """How a circuit is found (sections 2 to 4 of the paper)."""

    metric: SingleMetric = "log_odds"
    """What a cluster's circuit explains, of the answer: its log odds against all other tokens, its
    log-probability (the paper's), or its logit's margin to the runner-up."""
    estimator: EstimatorName = "ig"
    """Integrated gradients (eq. 4), attribution patching (3) or patching itself (2)."""
    rule: Rule = "adaptive"
    """Quadrature: adaptive halves intervals until the tolerance is met, left is the authors'."""
    steps: Annotated[Count, Field(le=10_000)] = 4
    """Points of the integral, 10 in the paper; intervals to begin with where it is adaptive."""
    tolerance: Positive | None = None
    """Of the rule adaptive: the largest completeness gap of an example, as a share of the change
    that a submodule's effects should sum to; 0.1 where not given."""
    node_threshold: PositiveOrZero = 0.1
    """Keep a node whose effect is larger, in nats (clusters) or logits (pairs)."""
    edge_threshold: PositiveOrZero = 0.01
    """Keep an edge whose effect is larger."""
    n_examples: Count = 24
    """Most examples of a cluster that its circuit is found from."""
    stability: Share | None = 0.45
    """Add examples by the round until circuits from either half of them share this much of their
    nodes (Jaccard index), and stop there; all of n_examples where null."""
    round: Count = 8
    """Examples that are added at a time."""
    n_evaluated: Count = 20
    """Most examples of it, a third at most, kept back to judge the circuit on."""
    max_length: Count | None = None
    """Most tokens of context before an answer, cut from its beginning; all where not given."""

    def clashes(self) -> Iterator[Problem]:
        """A tolerance that nothing would meet."""
        if self.tolerance is not None and (self.estimator != "ig" or self.rule != "adaptive"):
            yield (
                ("tolerance",),
                "is met by adding points to an integral: set estimator to ig and rule to adaptive, "
                "or leave it out.",
            )


class ApproximationSettings(Section):
    """How estimated effects are held against interventions (Figure 8)."""

    n_sampled: Count = 16
    """Nodes of each submodule that are patched one at a time: half of them the strongest, the
    others drawn among nodes of every size."""
    n_examples: Count = 8
    """Most examples that are patched in, of those a circuit is found from."""
    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] = (25, 50, 100, 200)
    """Sizes of the circuits chosen by each estimator, whose faithfulness is compared."""
    seed: Seed = 0
    """Of the nodes that are drawn."""
    min_correlation: Share = 0.5
    """Warn where the ranks of integrated gradients and of exact effects correlate less, in the
    median submodule."""


class EvaluationSettings(Section):
    """How circuits are judged (section 3.2)."""

    ablation: Ablation = "zero"
    """What nodes outside the circuit are set to; for pairs it is always the mean."""
    error_nodes: Annotated[tuple[ErrorNodes, ...], Field(min_length=1)] = ("circuit", "drop")
    """As the circuit has them; none of them in the circuit (drop); only those of
    the residual stream (drop_but_resid); all ablated, or all kept, in every run."""
    start_layer: CountOrZero = 0
    """First layer whose nodes are ablated; earlier ones are left as the model has them."""
    other_start_layers: tuple[CountOrZero, ...] = ()
    """The circuit of a cluster, but not its curve, is also judged from these layers on."""
    n_thresholds: Annotated[Count, Field(ge=2, le=1_000)] = 15
    """Points of the faithfulness curve of every circuit: thresholds by equal ratios."""
    lowest_threshold: Annotated[float, Field(ge=1e-4, le=_MOST)] = 1e-3
    """The first of them; effects below 1e-4 are not kept."""
    highest_threshold: Positive = 10.0
    """The last."""
    n_examined: CountOrZero | None = 4
    """The first so many clusters are examined closer, as every task is: held against baselines,
    edges judged, circuits judged on each other's behaviours; null examines all."""
    edge_shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.4,
        0.7,
    )
    """Of a circuit examined closer, such shares of the possible edges between its nodes are kept,
    the strongest or random ones, and ablated, the strongest."""
    n_edges_measured: CountOrZero = 4
    """Edges of each kind (between which submodules, from or into error nodes) measured by
    intervention in each of these circuits."""
    n_edge_examples: Count = 8
    """Examples on which they are, of those that the circuit was found from."""
    min_edge_correlation: Annotated[float, Field(ge=-1, le=1)] = 0.7
    """Warn where weights of edges between features rank them otherwise than interventions along
    their direct paths do: where the rank correlation is lower."""
    approximations: ApproximationSettings | None = ApproximationSettings()
    """How good estimated effects are, of tasks and of clusters that are examined closer; not
    measured where null."""
    min_faithfulness: Annotated[float, Field(ge=-_MOST, le=_MOST)] = 0.2
    """Warn where the median circuit of the experiment is below this."""
    variants: tuple[Variant, ...] = VARIANTS
    """What circuits of every size are made of, to compare: features with all error nodes, with
    none of them (no_errors) or those of the residual stream (residual_errors); neurons of the same
    submodules; hidden neurons of MLPs (mlp_neurons); nodes drawn at random (random_nodes);
    directions drawn at random (random_decoder). Nothing is compared where empty."""
    n_random: Count = 3
    """Draws of random_nodes, whose mean is taken."""
    n_minimal: CountOrZero = 24
    """Nodes of a circuit, the strongest first, without each of which it is judged once more."""
    random_margin: Annotated[float, Field(ge=-_MOST, le=_MOST)] = 0.1
    """Warn where as many random nodes are nearer than this to a circuit's faithfulness."""
    rounding: Positive = 1e-3
    """Warn where all nodes together have a faithfulness further than this from 1, or none of them
    from 0."""
    max_overlap: Share = 0.8
    """Warn where the circuits of two clusters share more of their effect than this."""

    def clashes(self) -> Iterator[Problem]:
        """Thresholds that do not rise, and layers that are there twice."""
        layers = (self.start_layer, *self.other_start_layers)
        if len(set(layers)) < len(layers):
            yield ("other_start_layers",), "name a layer twice, or that of start_layer."
        if len(set(self.variants)) < len(self.variants):
            yield ("variants",), "name one twice."
        if not self.lowest_threshold < self.highest_threshold:
            told = f"must be above lowest_threshold, {self.lowest_threshold:g}."
            yield ("highest_threshold",), told


class PairFiles(Section):
    """Contrastive pairs of one structure, JSON lines as the authors write them."""

    train: Text
    """Pairs the circuit is found from."""
    test: Text
    """Pairs it is judged on; those that also occur in train are left out."""


class TaskSettings(Section):
    """Circuits of contrastive pairs, by position (section 3)."""

    pairs: Annotated[dict[Name, PairFiles], Field(min_length=1), AfterValidator(_apart)]
    """Files by the name of the structure."""
    n_examples: Count = 100
    """Most pairs a circuit is found from."""
    n_evaluated: Count = 40
    """Most pairs it is judged on."""
    steps: Annotated[Count, Field(le=10_000)] = 4
    """Points of the integral, by the midpoint rule; 4 leave effects as near the converged ones as
    the authors' 10 from the left."""
    node_threshold: PositiveOrZero = 0.1
    """Keep a node whose effect is larger, in logits."""
    edge_threshold: PositiveOrZero = 0.01
    """Keep an edge whose effect is larger."""
    by_position: bool = True
    """Make each position a node of its own; pairs of the most frequent length are kept. Without it
    pairs of several lengths are ablated to one mean of all positions, and little can be kept."""
    start_layer: CountOrZero = 0
    """First layer whose nodes are ablated; the paper takes 2 for Pythia-70M."""


class EndpointSettings(Section):
    """A language model that describes features from their cards, by the OpenAI API."""

    url: Text
    """Where the API is, such as http://127.0.0.1:8000/v1; chat/completions is added."""
    model: Text
    """The model's name there."""
    key_variable: Text | None = None
    """Environment variable that holds the key; none is sent where not given."""
    timeout: Positive = 60.0
    """Seconds to wait for one answer."""
    n_features: Count = 100
    """Features of circuits that are described, those with the largest effects."""

    def clashes(self) -> Iterator[Problem]:
        """An address that is none."""
        if not re.match(r"https?://", self.url):
            yield ("url",), "an address begins with http:// or https://."


class CardSettings(Section):
    """Cards: when a feature is active, and what that does."""

    features: Literal["circuits", "all"] = "circuits"
    """Features of circuits, or all of the dictionaries."""
    n_random: CountOrZero = 10
    """Features of each submodule that are in no circuit, drawn at random, to compare with."""
    n_neurons: CountOrZero = 10
    """Neurons of each submodule, drawn at random, to compare with."""
    n_contexts: Count = 10_000
    """Most contexts that are read, from the beginning of the corpus."""
    n_held_out: Count = 200
    """Contexts from its end, a tenth at most, that no card is made from: labels are scored on
    them."""
    n_strongest: Annotated[Count, Field(le=1_000)] = 10
    """Contexts of the strongest activations on a card."""
    n_per_quantile: Annotated[CountOrZero, Field(le=1_000)] = 3
    """Contexts of each quarter of all in which the feature is active."""
    n_before: Annotated[CountOrZero, Field(le=10_000)] = 20
    """Tokens that are shown before the strongest activation."""
    n_after: Annotated[CountOrZero, Field(le=10_000)] = 8
    """Tokens that are shown after it."""
    n_tokens: Annotated[Count, Field(le=1_000)] = 10
    """Tokens that a feature promotes, suppresses or moves most."""
    n_ablated: Annotated[CountOrZero, Field(le=1_000)] = 2
    """Of the strongest contexts, those in which the feature is ablated; not done for features that
    only features: all asks for."""
    seed: Seed = 0
    """Of everything that is drawn."""


class LabelSettings(Section):
    """Labels: what features are about, in words."""

    n_background: CountOrZero = 64
    """Contexts of the corpus that a rule is held against besides those of its card."""
    annotations: tuple[Text, ...] = ()
    """Files of people's descriptions besides NAME.annotations.jsonl, which lies beside this one."""
    endpoint: EndpointSettings | None = None
    """A language model that describes features too; none is asked where not given."""


class LabelledTextSettings(Section):
    """Texts with a label, and an attribute that goes with it in the ambiguous ones (class 0 with
    attribute 0, class 1 with attribute 1) and not in the balanced ones (four equal groups)."""

    source: Text
    """A .jsonl, .jsonl.zst or .parquet file, a hub data set, or a folder laid out like one."""
    split: Text = "train"
    """Split of a data set that ambiguous texts are from, and balanced ones to train on."""
    test_split: Text | None = None
    """Split that balanced texts to judge on are from; the same where not given."""
    revision: Text | None = None
    """Branch, tag or commit of a hub data set."""
    text_column: Text = "text"
    """Column that holds the text."""
    label_column: Text
    """Column that holds what is classified: profession."""
    attribute_column: Text
    """Column that holds what it should not go by: gender."""
    tells_column: Text | None = None
    """Column with a word for each token, where it is known what tells the label: its column's name
    where the token tells it, the attribute's column's where it tells that."""
    labels: tuple[Value, Value]
    """What the column of labels has for class 0 and class 1; other texts are left out."""
    attributes: tuple[Value, Value] = (0, 1)
    """What the column of attributes has for attribute 0 and 1."""
    n_ambiguous: Count = 2_000
    """Most ambiguous texts, half of each class."""
    n_balanced_train: Count = 2_000
    """Most balanced texts to train on, a quarter of each group."""
    n_balanced_test: Count = 2_000
    """Most balanced texts to judge on. Sizes shrink together where a group has too few texts."""
    n_positions: Annotated[Count, Field(ge=2, le=1_000_000)] = 128
    """Tokens kept of each text, from its beginning; no more than the model has positions."""
    seed: Seed = 0
    """Of the draw."""

    def clashes(self) -> Iterator[Problem]:
        """One value for both classes, sets of no text, and a file with splits."""
        for key in ("labels", "attributes"):
            one, other = getattr(self, key)
            if one == other:
                yield (key,), f"both are {one}: name two values, so that there are two groups."
        for key, n_groups in (("n_ambiguous", 2), ("n_balanced_train", 4), ("n_balanced_test", 4)):
            if getattr(self, key) < n_groups:
                yield (key,), f"leaves one of {n_groups} groups without a text."
        if self.label_column == self.attribute_column:
            yield ("attribute_column",), "is the column of labels: the two cannot be told apart."


Judge = Literal["truth", "words", "rule", "person", "endpoint"]
"""Who says which features of a classifier's circuit are about the attribute."""


class JudgementSettings(Section):
    """Which features of the classifier's circuit are about the attribute alone (section 4)."""

    judge: Judge = "person"
    """Whose word counts: people's (annotations, in the explorer), what balanced texts show (truth),
    words or a rule on cards, or the model of labels.endpoint. All are asked that can be."""
    words: tuple[tuple[Text, ...], tuple[Text, ...]] = ((), ())
    """Words that tell attribute 0, and words that tell attribute 1, for words and rule."""

    def clashes(self) -> Iterator[Problem]:
        """A judge without what it goes by."""
        if self.judge in ("words", "rule") and not all(self.words):
            yield ("words",), f"{self.judge} judges by them: list some for each attribute."
        shared = {w.lower() for w in self.words[0]} & {w.lower() for w in self.words[1]}
        if shared:
            told = f"tell both attributes: {', '.join(sorted(shared)[:5])}. Leave them out."
            yield ("words",), told


class ProbeSettings(Section):
    """The classifier: logistic regression on a pooled stream (App. E.1)."""

    site: Text | None = None
    """The submodule it reads; the stream before the last layer, resid_L, where not given."""
    pooling: Pooling = "mean"
    """The mean over a text's tokens, or its last token."""
    epochs: Annotated[Count, Field(le=100_000)] = 1
    """Passes over the texts, 1 in the paper; enough for the loss to settle where texts are few."""
    lr: Annotated[Positive, Field(le=10)] = 0.01
    """Learning rate of AdamW."""
    weight_decay: PositiveOrZero = 0.01
    """Weight decay of AdamW."""
    batch: Count = 128
    """Texts per step."""
    seed: Seed = 0
    """Of its initial weights and of the order of texts."""


class ClassifierCircuitSettings(Section):
    """How the classifier's circuit is found: zero ablation, summed over positions (App. E.2)."""

    n_examples: Count = 100
    """Ambiguous texts it is found from."""
    n_evaluated: Count = 40
    """Others that it is judged on."""
    steps: Annotated[Count, Field(le=10_000)] = 10
    """Points of the integral, by the midpoint rule."""
    node_threshold: PositiveOrZero = 0.1
    """Keep a node whose effect is larger, in logits of the probe."""
    edge_threshold: PositiveOrZero = 0.01
    """Keep an edge whose effect is larger."""
    start_layer: CountOrZero = 0
    """First layer whose nodes are ablated when the circuit is judged."""


class ShiftSettings(Section):
    """What is ablated, and what it is compared with (section 4, Table 2)."""

    ablation: Literal["zero", "mean"] = "zero"
    """What ablated features are set to: zero, or their mean over the ambiguous texts."""
    error_nodes: bool = False
    """Ablate the circuit's error nodes too."""
    keywords: tuple[Text, ...] = ()
    """Words about the label for concept bottleneck probing (App. E.2), left out where none is
    given."""
    n_seeds: Annotated[Count, Field(ge=2, le=1_000)] = 5
    """How often probes are trained anew, each on texts drawn with replacement: the spread in the
    table."""
    n_draws: Annotated[Count, Field(le=1_000)] = 5
    """How often features are drawn for controls by chance; seeds take the draws in turn. The model
    reads the texts anew for each draw of each of three controls."""

    def clashes(self) -> Iterator[Problem]:
        """Draws that no seed takes."""
        if self.n_draws > self.n_seeds:
            yield ("n_draws",), f"{self.n_seeds} seeds (n_seeds) take no more draws than that."


class ClassifierSettings(Section):
    """A classifier, and what SHIFT makes of it (section 4)."""

    data: LabelledTextSettings
    """What it learns from and is judged on."""
    probe: ProbeSettings = ProbeSettings()
    """How it is trained."""
    circuit: ClassifierCircuitSettings = ClassifierCircuitSettings()
    """What of the model it rests on."""
    judgements: JudgementSettings = JudgementSettings()
    """Which of its features are about the attribute."""
    shift: ShiftSettings = ShiftSettings()
    """What ablating them does."""


class RerunSettings(Section):
    """What is run again by itself while the UI's daemon runs."""

    automatic: bool = True
    """Run what a changed file, setting or dictionary makes stale; the switch of the sensor when it
    is first seen."""
    training: bool = False
    """Train dictionaries too; they wait to be asked for otherwise. Imported ones never wait."""
    schedule: Cron = "0 3 * * 0"
    """When the schedule brings everything up to date, training included: minute, hour, day of the
    month, month, day of the week. It is off until somebody turns it on."""
    hub: bool = False
    """Ask the hub, once an hour, which commit the model and the data set are at."""


class Settings(Section):
    """A whole file."""

    model_config = ConfigDict(validate_default=True)

    description: Annotated[str, Field(max_length=10_000)] = ""
    """What the experiment is about; shown in the UI."""
    model: ModelSettings
    """The language model."""
    corpus: CorpusSettings
    """The text it reads."""
    submodules: Places = None
    """Where dictionaries sit: all of embed, attn_L, mlp_L and resid_L, or a list of them."""
    dictionaries: Annotated[TrainSettings | ImportSettings, Field(discriminator="source")]
    """Where they come from."""
    checks: CheckSettings = CheckSettings()
    """Limits of what is checked."""
    filter: FilterSettings = FilterSettings()
    """Tokens worth explaining."""
    clustering: ClusteringSettings = ClusteringSettings()
    """How they are grouped; the clusters get circuits."""
    comparisons: Annotated[dict[Name, GroupingSettings], AfterValidator(_apart)] = Field(
        default_factory=dict
    )
    """Other clusterings of the same samples, by a name of your own, to compare with that one."""
    circuits: CircuitSettings = CircuitSettings()
    """How a circuit is found for each group."""
    evaluations: EvaluationSettings = EvaluationSettings()
    """How it is judged."""
    tasks: TaskSettings | None = None
    """Circuits of contrastive pairs; none where not given."""
    cards: CardSettings | None = CardSettings()
    """What features of circuits mean; nothing is made of it where null."""
    labels: LabelSettings = LabelSettings()
    """What they are called; made where there are cards."""
    classifier: ClassifierSettings | None = None
    """A classifier whose features are judged and ablated; none where not given."""
    explorer: Annotated[Text, AfterValidator(_address)] = "http://127.0.0.1:3001"
    """Address of the explorer, to which circuits link in the Dagster UI."""
    reruns: RerunSettings = RerunSettings()
    """What is run again by itself."""
    artifacts: Annotated[Text, AfterValidator(_artifacts)] | None = None
    """Folder for everything the experiment writes, or an address such as s3://BUCKET/PREFIX;
    artifacts/NAME of the checkout by default."""

    # What a section says is held against sections above it, where those are sound.

    @field_validator("submodules")
    @classmethod
    def _known_submodules(cls, names: tuple[str, ...] | None, above: ValidationInfo) -> Any:
        if names is not None and "model" in above.data:
            n_layers = above.data["model"].n_layers
            refuse(
                _unknown(
                    (), names, submodule_names(n_layers), f"a model of {n_layers} layers has no"
                )
            )
        return names

    @field_validator("dictionaries")
    @classmethod
    def _one_for_each(cls, section: TrainSettings | ImportSettings, above: ValidationInfo) -> Any:
        if {"model", "submodules"} <= above.data.keys():
            known = submodule_names(above.data["model"].n_layers)
            if isinstance(section, ImportSettings):
                refuse(_path_problems(section, known, above.data["submodules"] or known))
            else:
                refuse(section.k_problems(above.data["submodules"] or known))
        return section

    @field_validator("clustering", "comparisons")
    @classmethod
    def _samples_for_each(cls, section: Any, above: ValidationInfo) -> Any:
        if {"model", "submodules", "filter"} <= above.data.keys():
            named = (
                {(name,): part for name, part in section.items()}
                if isinstance(section, dict)
                else {(): section}
            )
            refuse(
                problem
                for where, grouping in named.items()
                for problem in _grouping_problems(where, grouping, above.data)
            )
        return section

    @field_validator("circuits")
    @classmethod
    def _short_enough(cls, section: CircuitSettings, above: ValidationInfo) -> Any:
        if section.max_length is not None and "corpus" in above.data:
            n_positions = above.data["corpus"].n_positions
            if section.max_length > n_positions:
                told = f"contexts have at most {n_positions} tokens (corpus.n_positions)."
                refuse([(("max_length",), told)])
        return section

    @field_validator("evaluations", "tasks")
    @classmethod
    def _starts_at_a_layer(cls, section: Any, above: ValidationInfo) -> Any:
        if section is not None and "model" in above.data:
            n_layers = above.data["model"].n_layers
            chosen = above.data.get("submodules") or submodule_names(n_layers)
            refuse(
                (where, told)
                for where, layer in _start_layers(section)
                if (told := _no_start(layer, n_layers, chosen))
            )
        return section

    @field_validator("classifier")
    @classmethod
    def _reads_a_site(cls, section: ClassifierSettings | None, above: ValidationInfo) -> Any:
        if section is not None and {"model", "submodules"} <= above.data.keys():
            refuse(_site_problems(section, above.data["model"].n_layers, above.data["submodules"]))
        return section

    @field_validator("evaluations")
    @classmethod
    def _of_one_length(cls, section: EvaluationSettings, above: ValidationInfo) -> Any:
        if section.ablation == "resample" and {"filter", "circuits"} <= above.data.keys():
            least, most = above.data["filter"].min_context, above.data["circuits"].max_length
            if most is None or most > least:
                told = (
                    "resample gives an example the values of another at the same position, so all "
                    f"must be of one length: set circuits.max_length to {least} or less, what "
                    "stands before every answer (filter.min_context), or take mean or zero."
                )
                refuse([(("ablation",), told)])
        return section


def _start_layers(section: Any) -> Iterator[tuple[tuple[str | int, ...], int]]:
    yield ("start_layer",), section.start_layer
    for i, layer in enumerate(getattr(section, "other_start_layers", ())):
        yield ("other_start_layers", i), layer


def _no_start(layer: int, n_layers: int, submodules: Sequence[str]) -> str | None:
    """Why nothing can be ablated from a layer on, if so."""
    if layer >= n_layers:
        return f"the model has layers 0 to {n_layers - 1}."
    if not any(_layer_of(name) >= layer for name in submodules):
        return "no dictionary sits there or after it (embed apart): nothing is ablated."
    return None


def _site_problems(
    section: ClassifierSettings, n_layers: int, submodules: Sequence[str] | None
) -> Iterator[Problem]:
    """A site that the model does not have, or that no dictionary can change."""
    known, site = submodule_names(n_layers), section.probe.site
    if site is None and n_layers < 2:
        yield ("probe", "site"), "a model of one layer has no stream before the last: name a site."
        return
    site = site or default_site(n_layers)
    if site not in known:
        told = f"a model of {n_layers} layers has no '{site}'.{nearest(site, known)}"
        yield ("probe", "site"), told
        return
    chosen, end = submodules or known, known.index(site)
    first = section.circuit.start_layer
    if not any(known.index(name) <= end and name != "embed" for name in chosen):
        told = f"no dictionary sits at {site} or before it (embed apart): it has no circuit."
        yield ("probe", "site"), told
    elif not any(known.index(name) <= end and _layer_of(name) >= first for name in chosen):
        told = f"no dictionary sits there or after it, as far as {site}: nothing is ablated."
        yield ("circuit", "start_layer"), told


def default_site(n_layers: int) -> str:
    """The stream before the last layer (App. E.1)."""
    return f"resid_{n_layers - 2}"


def _grouping_problems(
    where: tuple[str, ...], grouping: GroupingSettings, above: Mapping[str, Any]
) -> Iterator[Problem]:
    n_samples, most = above["filter"].n_samples, max(grouping.k)
    if n_samples is not None and n_samples < most:
        yield (*where, "k"), f"{most} clusters cannot be made of {n_samples} samples (filter)."
    if n_samples is None and grouping.algorithm == "spectral":
        yield (
            (*where, "algorithm"),
            "spectral clustering compares every sample with every other: give filter.n_samples a "
            "number, 8192 in the paper, or take kmeans.",
        )
    if grouping.submodules is None:
        return
    where = (*where, "submodules")
    if grouping.representation == "gradients":
        yield where, "gradients are those of all layers' weights: leave submodules out."
        return
    n_layers = above["model"].n_layers
    known, why = submodule_names(n_layers), f"a model of {n_layers} layers has no"
    if grouping.representation == "mlp_neurons":
        known, why = [name for name in known if name.startswith("mlp")], "no hidden neurons are at"
    if grouping.representation in WITH_DICTIONARIES:
        known, why = above["submodules"] or known, "no dictionary sits at"
    yield from _unknown(where, grouping.submodules, known, why)


def _path_problems(
    section: ImportSettings, known: Sequence[str], chosen: Sequence[str]
) -> Iterator[Problem]:
    for name in chosen:
        if section.path_of(name) is None:
            yield ("path",), f"is missing, and paths has none for {name}."
    for key in ("paths", "repositories"):
        places = [*known, "attn", "mlp", "resid"]
        for name in getattr(section, key):
            if name not in places:
                yield (key, name), f"names no submodule and no kind.{nearest(name, places)}"


def _unknown(
    where: tuple[str, ...], names: Sequence[str], known: Sequence[str], why: str
) -> Iterator[Problem]:
    """Names of submodules that are not among the known ones, or are there twice."""
    for i, name in enumerate(names):
        if name not in known:
            yield (*where, i), f"{why} '{name}'.{nearest(name, known)}"
        elif name in names[:i]:
            yield (*where, i), f"'{name}' is there twice."


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question whether the nearest of the known words was meant; empty if none is near."""
    near = difflib.get_close_matches(word[:100], list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]}?" if near else ""


def submodule_names(n_layers: int) -> list[str]:
    """Every submodule of a model with `n_layers` layers, in causal order."""
    kinds = ("attn", "mlp", "resid")
    return ["embed", *(f"{kind}_{layer}" for layer in range(n_layers) for kind in kinds)]


def _layer_of(submodule: str) -> int:
    """The layer of a submodule; -1 for embed."""
    return int(submodule.rpartition("_")[2]) if "_" in submodule else -1


def is_path(source: str) -> bool:
    """Whether a source is written as a path and not as a hub id."""
    return source.startswith((".", "/", "~"))


def is_address(place: str) -> bool:
    """Whether a place is written as an address, ``s3://bucket/prefix``, and not as a folder."""
    return "://" in place


@dataclass(frozen=True)
class Experiment:
    """One experiment, read once: its name keys the asset graph, its settings never change.

    Attributes:
        name: the file's name without ``.yaml``; the first part of every asset key.
        path: the YAML file.
        settings: what it says.
        artifacts: folder for everything the experiment writes; the copy of it where the settings
            say an address (`assets.engine.remote`).
        digest: SHA-256 of the file as it was read.
    """

    name: str
    path: Path
    settings: Settings
    artifacts: Path
    digest: str

    def resolve(self, source: str) -> str:
        """`source` as an absolute path if it is written as one or lies beside the YAML file."""
        place = self.path.parent / os.path.expanduser(source)
        return os.path.realpath(place) if is_path(source) or os.path.exists(place) else source

    @property
    def submodules(self) -> list[str]:
        """Submodules with a dictionary, in causal order."""
        every = submodule_names(self.settings.model.n_layers)
        chosen = self.settings.submodules
        return every if chosen is None else [name for name in every if name in chosen]

    @property
    def mlps(self) -> list[str]:
        """Every MLP of the model, in causal order."""
        every = submodule_names(self.settings.model.n_layers)
        return [name for name in every if name.startswith("mlp")]

    @property
    def clusters(self) -> list[str]:
        """Keys of the clusters that get a circuit: ``k00000``, ``k00001``, ..."""
        clustering = self.settings.clustering
        n_clusters = max(clustering.k)
        return [f"k{i:05d}" for i in range(min(n_clusters, clustering.max_clusters or n_clusters))]

    @property
    def examined(self) -> list[str]:
        """Keys of the clusters whose circuits are examined closer: the first of `clusters`."""
        return self.clusters[: self.settings.evaluations.n_examined]

    @property
    def annotations(self) -> Path:
        """Where people's descriptions of features are kept: beside the YAML file."""
        return self.path.with_suffix(".annotations.jsonl")

    @property
    def budget_bytes(self) -> int:
        """Memory for what one step of the work holds."""
        return int(self.settings.model.memory_gb * 1e9)

    @property
    def group(self) -> str:
        """The name as Dagster allows it in group names."""
        return "".join(c if c.isalnum() else "_" for c in self.name)
