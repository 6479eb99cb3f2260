"""Circuits as files to give away: `python -m explorer.export EXPERIMENT.yaml CIRCUIT --html ...`.

CIRCUIT is a cluster (``k00003``) or a task (``simple``). A page holds everything it shows and asks
the network for nothing. Beside graph JSON lie one JSON for each feature, in ``features/``, and
``graph-metadata.json``, as circuit-tracer's own page reads them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from markupsafe import Markup

from assets.settings import Experiment, ExperimentError
from assets.tables.places import BehaviourSource
from core.atomic import replacing
from core.errors import CircuitError
from explorer import exchange
from explorer.annotations import AnnotationFile
from explorer.circuits import SIZES, View, card
from explorer.pages import HERE, bars, environment
from explorer.reader import Reader

if TYPE_CHECKING:
    from core.types import Circuit


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: of its name.
        media_type: as browsers call it.
        about: what it is, for people.
        write: makes it.
    """

    suffix: str
    media_type: str
    about: str
    write: Callable[[View], str]


def page(view: View) -> str:
    """One circuit as a page that holds everything it shows."""
    style = (HERE / "static/explorer.css").read_text(encoding="utf-8")
    script = (HERE / "static/circuit.js").read_text(encoding="utf-8")
    circuit = view.circuit
    names = [] if circuit is None else [circuit.nodes[i].name for i in view.drawn]
    return (
        environment()
        .get_template("alone.html")
        .render(
            title=f"{view.reader.experiment.name} · {view.name}",
            reader=view.reader,
            source=view.source,
            name=view.name,
            view=view,
            head=view.head,
            svg=view.svg(),
            data=view.data,
            contexts=view.contexts,
            judged=view.judged,
            nodes=[view.node(name) for name in names],
            pinned=None,
            fixed=True,
            bars=bars,
            style=Markup(style),
            script=Markup(script),
            # Nothing but this script and this style runs, and nothing may be asked for.
            policy=f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; "
            "base-uri 'none'; form-action 'none'",
        )
    )


def _hash(text: str) -> str:
    """How a Content-Security-Policy names a script or style by its contents."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _graph_json(view: View) -> str:
    return exchange.as_json(graph_of(view))


def graph_of(view: View, scan: str = exchange.LOCAL) -> dict[str, Any]:
    """One circuit as graph JSON."""
    settings = view.reader.experiment.settings
    return exchange.graph(
        _whole(view),
        slug=slug_of(view),
        model=settings.model.source,
        scan=scan,
        about=view.head.get("about", ""),
        labels=view.texts(_whole(view).nodes),
    )


def slug_of(view: View) -> str:
    """What a graph is called."""
    return f"{view.reader.experiment.name}-{view.name}"


def _whole(view: View) -> Circuit:
    if view.circuit is None:
        raise ExperimentError(f"{view.name} is empty: its cluster has no samples.")
    return view.circuit


FORMATS: dict[str, Format] = {
    "html": Format(".html", "text/html; charset=utf-8", "page that needs no network (HTML)", page),
    "svg": Format(".svg", "image/svg+xml", "picture (SVG)", lambda view: view.svg(alone=True)),
    "dot": Format(
        ".dot",
        "text/vnd.graphviz",
        "graph for Graphviz (DOT)",
        lambda view: exchange.dot(_whole(view), slug_of(view), view.texts(_whole(view).nodes)),
    ),
    "graphml": Format(
        ".graphml",
        "application/xml",
        "graph for NetworkX, Gephi, yEd (GraphML)",
        lambda view: exchange.graphml(_whole(view), slug_of(view), view.texts(_whole(view).nodes)),
    ),
    "graph-json": Format(
        ".json", "application/json", "graph for circuit-tracer, Neuronpedia (JSON)", _graph_json
    ),
}


def written(view: View, kind: str) -> str:
    """One circuit as the text of a file of this kind."""
    _whole(view)
    return FORMATS[kind].write(view)


def write_features(view: View, folder: Path) -> int:
    """The feature JSON of every feature of a circuit; how many."""
    circuit = _whole(view)
    features = {(n.submodule, n.feature) for n in circuit.nodes if not n.is_error}
    for submodule, feature in sorted(features):
        found = card(view.labels, "features", submodule, feature)
        content = exchange.feature_json(found, view.reader.texts.shown)
        _write(folder / f"{content['index']}.json", exchange.as_json(content))
    return len(features)


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def export(
    experiment: Experiment,
    name: str,
    kinds: Sequence[str],
    out: Path,
    *,
    n_nodes: int = SIZES[1],
    scan: str = exchange.LOCAL,
) -> None:
    """Write one circuit as files of these kinds, and say where they lie.

    Args:
        name: of a cluster or a task.
        kinds: of `FORMATS`.
        out: the folder; made where it is missing.
        n_nodes: most nodes in a picture.
        scan: as in `explorer.exchange.graph`.

    Raises:
        ExperimentError: there is no such circuit, or it is empty.
        OSError: a file cannot be written.
    """
    reader = Reader(experiment)
    source: BehaviourSource | None = next(
        (source for source, names in reader.names.items() if name in names), None
    )
    if source is None:
        every = [one for names in reader.names.values() for one in names]
        raise ExperimentError(
            f"{experiment.name} has no circuit {name!r}: there are {', '.join(every[:8])}"
            f"{' and so on' if len(every) > 8 else ''}."
        )
    view = View(reader, AnnotationFile(experiment.annotations), source, name, n_nodes)
    for kind in kinds:
        path = out / f"{slug_of(view)}{FORMATS[kind].suffix}"
        if kind == "graph-json":
            graph = graph_of(view, scan)
            _write(path, exchange.as_json(graph))
            _write(out / "graph-metadata.json", exchange.as_json({"graphs": [graph["metadata"]]}))
            n = write_features(view, out / "features")
            sys.stdout.write(f"{out / 'features'}: {n} features\n")
        else:
            _write(path, written(view, kind))
        sys.stdout.write(f"{path}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    from pipelines.experiment import read_experiment

    parser = argparse.ArgumentParser(
        prog="python -m explorer.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("experiment", type=Path, help="the experiment's YAML file")
    parser.add_argument("circuit", help="a cluster (k00003) or a task (simple)")
    parser.add_argument("--out", type=Path, default=Path(), help="folder; here by default")
    parser.add_argument("--nodes", type=int, default=SIZES[1], help="most nodes in the picture")
    parser.add_argument(
        "--scan",
        default=exchange.LOCAL,
        metavar="MODEL",
        help="in graph JSON: what Neuronpedia calls the model; the features beside it by default",
    )
    for kind, known in FORMATS.items():
        parser.add_argument(f"--{kind}", action="store_true", help=known.about)
    chosen = vars(parser.parse_args(arguments))
    kinds = [kind for kind in FORMATS if chosen[kind.replace("-", "_")]]
    if not kinds:
        parser.error(f"say what to write: {', '.join(f'--{kind}' for kind in FORMATS)}")
    try:
        experiment = read_experiment(chosen["experiment"])
        export(
            experiment,
            chosen["circuit"],
            kinds,
            chosen["out"],
            n_nodes=chosen["nodes"],
            scan=chosen["scan"],
        )
    except (ExperimentError, CircuitError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
