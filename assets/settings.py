"""What an experiment's YAML file may say, and nothing else: one model per section.

Every section refuses keys it does not know. Paths are kept as written; `Experiment.resolve` takes
a relative one from the folder of the YAML file. Nothing here needs torch or a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from core.options import (
    Ablation,
    Algorithm,
    DictionaryKind,
    Dtype,
    ErrorNodes,
    EstimatorName,
    Format,
    Reduction,
    Representation,
    Rule,
)

CHOSEN = "chosen"
"""What the clustering whose clusters get circuits is called among those compared with it."""


class ExperimentError(Exception):
    """An experiment that cannot be run as it is written."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


def _all_is_none(value: Any) -> Any:
    return None if value == "all" else value


class Section(BaseModel):
    """A section of the file: frozen, so that it can key a cache, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelSettings(Section):
    """The model that is explained."""

    source: str
    """Folder written by save_pretrained, or a hub id."""
    n_layers: PositiveInt
    """Decoder layers; says which submodules exist before the model is loaded."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Dtype = "float32"
    """Number type of the weights."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    attn_input: bool = False
    """Put attn_L at the input of the attention's output projection, as Gemma Scope does."""
    memory_gb: PositiveFloat = 2.0
    """Memory for what one step of the work holds besides the model, in GB."""


class CorpusSettings(Section):
    """The text, and how it is cut into contexts."""

    source: str
    """A .txt, .jsonl, .jsonl.zst or .parquet file, a folder of them, or a hub data set."""
    text_column: str = "text"
    """Column that holds the text."""
    labels_column: str | None = None
    """Column with one label per token, where the corpus says what determines each token."""
    separator: str | None = None
    """What stands between documents of a .txt file."""
    split: str = "train"
    """Split of a hub data set."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    n_documents: PositiveInt | None = None
    """Documents to read; all where not given."""
    n_positions: Annotated[int, Field(ge=2)] = 128
    """Tokens kept of each document, from its beginning."""
    n_held_out: PositiveInt = 128
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
    n_features: PositiveInt | None = None
    """Features of each dictionary; expansion times the model's width where not given."""
    expansion: PositiveInt = 64
    """Features per dimension of the model."""
    k: PositiveInt = 32
    """Active features per token, for topk and batchtopk."""
    steps: PositiveInt = 120_000
    """Optimiser steps."""
    checkpoint_every: PositiveInt = 1_000
    """Steps between checkpoints that a killed training goes on from."""
    batch: PositiveInt = 16_384
    """Tokens per step."""
    lr: PositiveFloat = 1e-4
    """Learning rate of Adam."""
    sparsity: NonNegativeFloat = 0.1
    """Weight of the sparsity penalty."""
    warmup: Annotated[int, Field(ge=0)] = 1_000
    """Steps over which the learning rate rises, at the start and after each resampling."""
    decay: Annotated[int, Field(ge=0)] = 0
    """Steps over which it falls to zero at the end."""
    sparsity_warmup: Annotated[int, Field(ge=0)] = 0
    """Steps over which the penalty rises at the start."""
    resample_every: Annotated[int, Field(ge=0)] = 25_000
    """Steps between resamplings of dead features; 0 for none."""
    dead_after: PositiveInt = 12_500
    """Steps without activation after which a feature is dead."""
    seed: int = 0
    """Of initialisation, shuffling and resampling."""
    buffer_mb: PositiveFloat = 1_024.0
    """Memory for the shuffling buffer, in MB."""
    cache_gb: PositiveFloat = 50.0
    """Most disk the activation cache may take, in GB."""


_PLACE = r"^(embed|(attn|mlp|resid)(_\d+)?)$"


def _of(named: Mapping[str, str], submodule: str) -> str | None:
    """What is named for the submodule, or for its kind."""
    return named.get(submodule, named.get(submodule.split("_")[0]))


class ImportSettings(Section):
    """Dictionaries that somebody else trained."""

    source: Literal["import"]
    """Read them."""
    format: Format
    """Layout of the files; sfc is this project's own."""
    repository: str
    """A folder, or a hub repository."""
    repositories: dict[Annotated[str, Field(pattern=_PLACE)], str] = Field(default_factory=dict)
    """Others for single submodules (attn_3) or kinds (attn), in place of repository."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    archive: str | None = None
    """A .zip in the repository that holds them; unpacked once, into the artifacts folder."""
    path: str | None = None
    """Where a dictionary lies in the repository or archive; {submodule}, {kind}, {layer} and
    {site} (the authors' word for attn_3: attn_out_layer3) are filled in, {l0} and * stand for
    what is there: average_l0_{l0}."""
    paths: dict[str, str] = Field(default_factory=dict)
    """The same for single submodules (attn_3) or kinds (attn), in place of path."""
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Passed to the format's reader, e.g. normalize_decoder: false. With l0: 100, of several
    places that fit the path the one whose L0 is nearest is taken."""

    def path_of(self, submodule: str) -> str | None:
        """Where the dictionary of a submodule lies; None if the file does not say."""
        own = _of(self.paths, submodule)
        return self.path if own is None else own

    def repository_of(self, submodule: str) -> str:
        """The folder or hub repository with the dictionary of a submodule."""
        own = _of(self.repositories, submodule)
        return self.repository if own is None else own


class FilterSettings(Section):
    """Which tokens are worth explaining: those the model predicts well (section 5)."""

    max_loss: PositiveFloat = 0.3
    """Keep an answer whose cross-entropy is below this, in nats; 0.1 or 0.3 in the paper."""
    min_context: PositiveInt = 4
    """Tokens that must stand before an answer."""
    stride: PositiveInt = 1
    """Least distance between two samples of one context, in tokens."""
    max_per_document: PositiveInt | None = None
    """Most samples from one document."""
    n_samples: PositiveInt | None = 8_192
    """Most samples in all; the whole corpus is read where null."""
    seed: int = 0
    """Of the draw within a document."""


class GroupingSettings(Section):
    """How samples are represented and grouped (section 5, App. H)."""

    representation: Representation = "features"
    """What a sample is: dense or dictionary activations, their linear effects, or gradients."""
    submodules: Annotated[tuple[str, ...] | None, BeforeValidator(_all_is_none)] = None
    """Where activations or effects are read; wherever dictionaries sit where not given."""
    reduction: Reduction = "last"
    """The last n_last positions side by side, or the sum over positions."""
    n_last: PositiveInt = 1
    """Positions kept when reduction is last."""
    algorithm: Algorithm = "kmeans"
    """Spectral clustering on angular similarity, or k-means."""
    k: Annotated[tuple[PositiveInt, ...], Field(min_length=1), BeforeValidator(_listed)] = (100,)
    """Clusters, or a list of counts to choose from (App. H.3)."""
    n_projected: PositiveInt = 30_000
    """Dimensions that gradients are projected to."""
    seed: int = 0
    """Of projection and clustering."""


class ClusteringSettings(GroupingSettings):
    """The clustering whose clusters get circuits."""

    max_clusters: PositiveInt | None = None
    """Circuits are found for at most this many, largest first; all where not given."""


class CircuitSettings(Section):
    """How a circuit is found (sections 2 to 4 of the paper)."""

    estimator: EstimatorName = "ig"
    """Integrated gradients (eq. 4), attribution patching (3) or patching itself (2)."""
    steps: PositiveInt = 10
    """Points of the integral."""
    rule: Rule = "midpoint"
    """Quadrature; left is the authors'."""
    tolerance: PositiveFloat | None = None
    """Double the steps of examples whose completeness gap is larger, in the metric's units, until
    it is not; ig only."""
    node_threshold: NonNegativeFloat = 0.1
    """Keep a node whose effect is larger, in nats (clusters) or logits (pairs)."""
    edge_threshold: NonNegativeFloat = 0.01
    """Keep an edge whose effect is larger."""
    n_examples: PositiveInt = 20
    """Most examples of a cluster that its circuit is found from."""
    n_evaluated: PositiveInt = 20
    """Most examples of it, a third at most, kept back to judge the circuit on."""
    max_length: PositiveInt | None = None
    """Most tokens of context before an answer, cut from its beginning; all where not given."""


class EvaluationSettings(Section):
    """How circuits are judged (section 3.2)."""

    ablation: Ablation = "zero"
    """What nodes outside the circuit are set to; for pairs it is always the mean."""
    error_nodes: Annotated[tuple[ErrorNodes, ...], Field(min_length=1)] = ("circuit", "drop")
    """As the circuit has them; none of them in the circuit (drop); only those of
    the residual stream (drop_but_resid); all ablated, or all kept, in every run."""
    start_layer: Annotated[int, Field(ge=0)] = 0
    """First layer whose nodes are ablated."""
    n_thresholds: Annotated[int, Field(ge=2)] = 15
    """Points of the faithfulness curve of every circuit, thresholds from 1e-4 to 1 by equal
    ratios."""
    min_faithfulness: float = 0.2
    """Warn where the median circuit of the experiment is below this."""


class PairFiles(Section):
    """Contrastive pairs of one structure, JSON lines as the authors write them."""

    train: str
    """Pairs the circuit is found from."""
    test: str
    """Pairs it is judged on; those that also occur in train are left out."""


class TaskSettings(Section):
    """Circuits of contrastive pairs, by position (section 3)."""

    pairs: Annotated[dict[str, PairFiles], Field(min_length=1)]
    """Files by the name of the structure."""
    n_examples: PositiveInt = 100
    """Most pairs a circuit is found from."""
    n_evaluated: PositiveInt = 40
    """Most pairs it is judged on."""
    node_threshold: NonNegativeFloat = 0.1
    """Keep a node whose effect is larger, in logits."""
    edge_threshold: NonNegativeFloat = 0.01
    """Keep an edge whose effect is larger."""
    by_position: bool = True
    """Make each position a node of its own; pairs of the most frequent length are kept."""
    start_layer: Annotated[int, Field(ge=0)] = 0
    """First layer whose nodes are ablated; the paper takes 2 for Pythia-70M."""


class Settings(Section):
    """A whole file."""

    description: str = ""
    """What the experiment is about; shown in the UI."""
    model: ModelSettings
    """The model that is explained."""
    corpus: CorpusSettings
    """The text it reads."""
    submodules: Annotated[tuple[str, ...] | None, BeforeValidator(_all_is_none)] = None
    """Where dictionaries sit: all of embed, attn_L, mlp_L and resid_L, or a list of them."""
    dictionaries: Annotated[TrainSettings | ImportSettings, Field(discriminator="source")]
    """Where they come from."""
    filter: FilterSettings = FilterSettings()
    """Tokens worth explaining."""
    clustering: ClusteringSettings = ClusteringSettings()
    """How they are grouped; the clusters get circuits."""
    comparisons: dict[str, GroupingSettings] = Field(default_factory=dict)
    """Other clusterings of the same samples, by a name of your own, to compare with that one."""
    circuits: CircuitSettings = CircuitSettings()
    """How a circuit is found for each group."""
    evaluations: EvaluationSettings = EvaluationSettings()
    """How it is judged."""
    tasks: TaskSettings | None = None
    """Circuits of contrastive pairs; none where not given."""
    artifacts: str | None = None
    """Folder for everything the experiment writes; artifacts/NAME of the checkout by default."""


def submodule_names(n_layers: int) -> list[str]:
    """Every submodule of a model with `n_layers` layers, in causal order."""
    kinds = ("attn", "mlp", "resid")
    return ["embed", *(f"{kind}_{layer}" for layer in range(n_layers) for kind in kinds)]


def is_path(source: str) -> bool:
    """Whether a source is written as a path and not as a hub id."""
    return source.startswith((".", "/", "~"))


@dataclass(frozen=True)
class Experiment:
    """One experiment, read once: its name keys the asset graph, its settings never change.

    Attributes:
        name: the file's name without ``.yaml``; the first part of every asset key.
        path: the YAML file.
        settings: what it says.
        artifacts: folder for everything the experiment writes.
        digest: SHA-256 of the file as it was read.
    """

    name: str
    path: Path
    settings: Settings
    artifacts: Path
    digest: str

    def resolve(self, source: str) -> str:
        """`source` as an absolute path if it is written as one or lies beside the YAML file."""
        place = self.path.parent / Path(source).expanduser()
        return str(place.resolve()) if is_path(source) or place.exists() else source

    @property
    def submodules(self) -> list[str]:
        """Submodules with a dictionary, in causal order."""
        every = submodule_names(self.settings.model.n_layers)
        chosen = self.settings.submodules
        return every if chosen is None else [name for name in every if name in chosen]

    @property
    def clusters(self) -> list[str]:
        """Keys of the clusters that get a circuit: ``k00000``, ``k00001``, ..."""
        clustering = self.settings.clustering
        n_clusters = max(clustering.k)
        return [f"k{i:05d}" for i in range(min(n_clusters, clustering.max_clusters or n_clusters))]

    @property
    def budget_bytes(self) -> int:
        """Memory for what one step of the work holds."""
        return int(self.settings.model.memory_gb * 1e9)

    @property
    def group(self) -> str:
        """The name as Dagster allows it in group names."""
        return "".join(c if c.isalnum() else "_" for c in self.name)
