"""The application: addresses, and what each answers."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from assets.features.annotations import LONGEST
from assets.settings import Experiment, ExperimentError
from assets.tables.places import BehaviourSource
from assets.tables.places import circuit as circuit_key
from explorer import export
from explorer.annotating import Wrong, annotation, queue
from explorer.annotations import AnnotationFile, NotSaved, now
from explorer.circuits import SIZES, Labels, View, card
from explorer.guard import Guard
from explorer.overview import Asked, overview
from explorer.pages import HERE, bars, environment, link
from explorer.pictures import plot, shared, suggested
from explorer.ratings import is_stale, table
from explorer.reader import Basis, Reader

_MOST_BYTES = 1 << 16
_ORDER = ("sort", "order", "q", "errors")
"""Parts of an address that say how circuits are sorted, so that next and previous follow it."""
_CHANGED = (
    "Nothing was saved: circuits or dictionaries have changed since this page was opened, so this "
    "may be another feature now. What you typed is below: look at the card again, and save."
)


class Explorer:
    """What pages are made from.

    Args:
        experiments: those that can be read.
        problems: why others cannot.
        dagster: address of the Dagster UI, linked from circuits; none if empty.
    """

    def __init__(
        self, experiments: Sequence[Experiment], problems: Sequence[str] = (), dagster: str = ""
    ) -> None:
        self.readers = {one.name: Reader(one) for one in experiments}
        self.files = {one.name: AnnotationFile(one.annotations) for one in experiments}
        self.problems, self.dagster = problems, dagster.rstrip("/")
        self._templates = environment()

    def page(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page."""
        shared_values = {"dagster": self.dagster, "experiments": list(self.readers)}
        text = self._templates.get_template(template).render(
            {"reader": None, "source": None, **shared_values, **values}
        )
        # A lone surrogate of a damaged text must not keep a page from being shown.
        return HTMLResponse(text.encode("utf-8", "backslashreplace"), status)

    def reader(self, request: Request) -> Reader:
        """The experiment that an address names; raises `LookupError`."""
        name = request.path_params["experiment"]
        if name not in self.readers:
            raise LookupError(f"there is no experiment {name!r}")
        return self.readers[name]

    def place(self, request: Request) -> tuple[Reader, AnnotationFile, BehaviourSource, str]:
        """The circuit that an address names; raises `LookupError`."""
        reader = self.reader(request)
        source, name = reader.source(request.path_params["source"]), request.path_params["name"]
        reader.check_name(source, name)
        return reader, self.files[reader.experiment.name], source, name

    # -- experiments and circuits -----------------------------------------------------------------

    def home(self, _request: Request) -> Response:
        """All experiments."""
        rows = []
        for name, reader in self.readers.items():
            made = {
                source: sum(reader.is_made(source, one) for one in names)
                for source, names in reader.names.items()
            }
            rows.append({"name": name, "reader": reader, "made": made})
        return self.page("home.html", title="Experiments", rows=rows, problems=self.problems)

    def circuits(self, request: Request) -> Response:
        """The circuits of one source."""
        reader = self.reader(request)
        source = reader.source(request.path_params["source"])
        asked = _asked(request)
        found = overview(reader, source, asked)
        return self.page(
            "circuits.html",
            title=f"{reader.experiment.name} · {source}",
            reader=reader,
            source=source,
            found=found,
            asked=asked,
            state=_state(request, _ORDER),
        )

    def circuit(self, request: Request) -> Response:
        """One circuit."""
        reader, file, source, name = self.place(request)
        view = View(reader, file, source, name, _chosen(request, "nodes", SIZES, SIZES[1]))
        order = list(overview(reader, source, _asked(request)).order)
        place = order.index(name) if name in order else None
        neighbours = [
            order[i] if place is not None and 0 <= i < len(order) else None
            for i in ((place or 0) - 1, (place or 0) + 1)
        ]
        pin = request.query_params.get("pin", "")
        try:
            pinned = view.node(pin) if pin else None
        except LookupError:
            pinned = None
        suggestions = None
        if request.query_params.get("alike") and view.circuit is not None:
            whole = reader.circuit(source, name)
            suggestions = suggested(reader, whole, view.groups) if whole else []
        return self.page(
            "circuit.html",
            title=f"{reader.experiment.name} · {name}",
            reader=reader,
            source=source,
            name=name,
            view=view,
            svg=view.svg(),
            contexts=view.contexts,
            judged=view.judged,
            plot=plot(view.curves),
            data=view.data,
            previous=neighbours[0],
            next=neighbours[1],
            state=_state(request, (*_ORDER, "nodes", "pin", "node", "edge")),
            order=_state(request, _ORDER),
            sizes=SIZES,
            pinned=pinned,
            asset=f"{circuit_key(source, name).stage}",
            suggestions=suggestions,
            formats=export.FORMATS,
            head=view.head,
            fixed=False,
            bars=bars,
            problems=view.problems,
        )

    def node(self, request: Request) -> Response:
        """One node of a circuit: a piece of its page."""
        reader, file, source, name = self.place(request)
        found = View(reader, file, source, name).node(request.query_params.get("name", ""))
        return self.page(
            "node.html", reader=reader, source=source, name=name, node=found, fixed=False, bars=bars
        )

    def compare(self, request: Request) -> Response:
        """Two circuits side by side."""
        reader = self.reader(request)
        file = self.files[reader.experiment.name]
        every = [f"{source}/{name}" for source, names in reader.names.items() for name in names]
        places = [request.query_params.get(side, "") for side in "ab"]
        views, problems = [], []
        for place in filter(None, places):
            source, _, name = place.partition("/")
            reader.check_name(reader.source(source), name)
            try:
                views.append(View(reader, file, reader.source(source), name, 40))
            except ExperimentError as error:
                problems.append(str(error))
        found = None
        if len(views) == 2:
            held = [reader.held_by(view.source, view.name) for view in views]
            found = shared(*({} if one is None else one.by_feature for one in held))
        return self.page(
            "compare.html",
            title=f"{reader.experiment.name} · two circuits",
            reader=reader,
            places=places,
            every=every,
            views=views,
            found=found,
            labels=Labels(reader, file),
            problems=problems,
            data={"shared": [row[0] for row in found.features] if found else []},
        )

    def download(self, request: Request) -> Response:
        """One circuit as a file to give away."""
        reader, file, source, name = self.place(request)
        kind = request.path_params["format"]
        if kind not in export.FORMATS:
            raise LookupError(f"a circuit is not written as {kind!r}")
        view = View(reader, file, source, name, _chosen(request, "nodes", SIZES, SIZES[1]))
        content = export.written(view, kind)
        filename = f"{reader.experiment.name}-{name}{export.FORMATS[kind].suffix}"
        return Response(
            content,
            media_type=export.FORMATS[kind].media_type,
            headers={"Content-Disposition": f'attachment; filename="{filename}"'},
        )

    # -- features -------------------------------------------------------------------------------

    def feature(self, request: Request) -> Response:
        """A feature: its card, and every circuit that holds it."""
        return self._card(request, "features")

    def neuron(self, request: Request) -> Response:
        """A neuron: its card."""
        return self._card(request, "neurons")

    def _card(self, request: Request, basis: Basis) -> Response:
        reader = self.reader(request)
        name = f"{request.path_params['submodule']}/{request.path_params['number']}"
        submodule, number = reader.check_feature(name, neuron=basis == "neurons")
        found = card(Labels(reader, self.files[reader.experiment.name]), basis, submodule, number)
        return self.page(
            "feature.html",
            title=f"{reader.experiment.name} · {name}",
            reader=reader,
            card=found,
            n=reader.n_of(submodule, basis),
            fixed=False,
            bars=bars,
        )

    def find(self, request: Request) -> Response:
        """A feature or circuit by what was typed."""
        reader = self.reader(request)
        wanted = request.query_params.get("name", "").strip()
        base = f"/{reader.experiment.name}"
        for source, names in reader.names.items():
            if wanted in names:
                return RedirectResponse(link(f"{base}/{source}/{wanted}"), 303)
        try:
            submodule, number = reader.check_feature(wanted)
        except LookupError:
            first = next(iter(reader.names))
            return RedirectResponse(link(f"{base}/{first}", q=wanted), 303)
        return RedirectResponse(link(f"{base}/features/{submodule}/{number}"), 303)

    # -- annotations ----------------------------------------------------------------------------

    def annotate(self, request: Request) -> Response:
        """The form for one feature after another."""
        return self._form(request, {}, "")

    def _form(
        self, request: Request, typed: Mapping[str, str], problem: str, status: int = 200
    ) -> Response:
        reader, file, source, name = self.place(request)
        blind = request.query_params.get("blind", "") == "1"
        classifier = reader.experiment.settings.classifier
        judged = classifier.data if classifier and source == "classifiers" and not blind else None
        seed = _whole(request.query_params.get("seed", "0"))
        items = queue(reader, source, name, blind=blind, seed=seed)
        i = min(max(_whole(request.query_params.get("i", "1")), 1), max(1, len(items)))
        by = request.query_params.get("by", "")
        item = items[i - 1] if items else None
        found = None
        if item is not None:
            found = card(Labels(reader, file), item.basis, item.submodule, item.feature)
        said = {
            (one.basis, one.name): one
            for one in file.annotations()
            if one.by == by
            and (one.blind or not blind)
            and not is_stale(reader, one)
            and (one.relevant is not None or not judged)
        }
        before = None if item is None else said.get((item.basis, item.name))
        if not typed and before is not None:
            typed = {
                "text": before.text,
                "interpretability": _typed(before.interpretability),
                "complexity": _typed(before.complexity),
                "relevant": {True: "yes", False: "no", None: ""}[before.relevant],
            }
        context = self.known_about(reader, source, name)
        return self.page(
            "annotate.html",
            status,
            title=f"{reader.experiment.name} · {name} · {'judge' if judged else 'annotate'}",
            reader=reader,
            source=source,
            name=name,
            about_text=context,
            items=items,
            done=[(item.basis, item.name) in said for item in items],
            i=i,
            item=item,
            card=found,
            weights=(reader.weights(item.submodule) if item else None) or "",
            sign="" if item is None else item.sign(seed),
            blind=blind,
            judged=judged,
            seed=seed,
            new_seed=random.randrange(1, 10**6),
            longest=LONGEST,
            by=by,
            typed={"by": by, **typed},
            saved=request.query_params.get("saved", "") if not problem else "",
            problem=problem,
            state={"by": by, "blind": "1" if blind else "", "seed": seed or ""},
            fixed=blind,
            bars=bars,
        )

    def known_about(self, reader: Reader, source: BehaviourSource, name: str) -> str:
        """What a circuit is about, in a line."""
        try:
            return reader.behaviours(source).get(name, {}).get("about", "")
        except ExperimentError:
            return ""

    async def save(self, request: Request) -> Response:
        """Keep what was typed, and go on to the next."""
        form = await _posted(request)
        return await run_in_threadpool(self._save, request, form)

    def _save(self, request: Request, form: Mapping[str, str]) -> Response:
        reader, file, source, name = self.place(request)
        blind = request.query_params.get("blind", "") == "1"
        seed = _whole(request.query_params.get("seed", "0"))
        items = queue(reader, source, name, blind=blind, seed=seed)
        item = next((one for one in items if one.sign(seed) == form.get("item")), None)
        if item is None:
            return self._form(request, form, _CHANGED, 409)
        weights = reader.weights(item.submodule)
        if form.get("weights", "") != (weights or ""):
            return self._form(request, form, _CHANGED, 409)
        try:
            one = annotation(item, form, weights=weights, circuit=f"{source}/{name}", blind=blind)
            file.save(one)
        except Wrong as error:
            return self._form(request, form, str(error), 400)
        except NotSaved as error:
            return self._form(request, form, f"{error} What you typed is below.", 500)
        following = min(items.index(item) + 2, len(items))
        query = {
            "by": one.by,
            "blind": "1" if blind else "",
            "seed": seed or "",
            "i": following,
            "saved": items.index(item) + 1,
        }
        path = f"/{reader.experiment.name}/annotate/{source}/{name}"
        return RedirectResponse(link(path, query), 303)

    async def group(self, request: Request) -> Response:
        """Draw alike features as one node from now on, or no longer."""
        form = await _posted(request)
        return await run_in_threadpool(self._group, request, form)

    def _group(self, request: Request, form: Mapping[str, str]) -> Response:
        reader, file, source, name = self.place(request)
        members = sorted(set(form.get("members", "").split()))
        problem, status = "", 400
        submodules = set()
        for member in members:
            submodules.add(reader.check_feature(member)[0])
        if len(members) < 2 or len(submodules) > 1:
            problem = (
                f"{' '.join(members) or 'Nothing'} cannot be one node: name two or more features "
                "of one submodule, with a space between them."
            )
        else:
            together = form.get("together", "") == "yes"
            groups = file.groups(f"{source}/{name}")
            if together:  # a group that shares a member grows
                members = sorted(
                    {m for g in groups if set(g) & set(members) for m in g} | set(members)
                )
            row = {"circuit": f"{source}/{name}", "group": members, "together": together}
            try:
                file.append({**row, "by": form.get("by", "").strip()[:100], "at": now()})
            except NotSaved as error:
                problem, status = str(error), 500
        if problem:
            return self.page(
                "message.html", status, title="Not grouped", message=problem, reader=reader
            )
        path = f"/{reader.experiment.name}/{source}/{name}"
        return RedirectResponse(link(path, _state(request, (*_ORDER, "nodes", "alike"))), 303)

    def annotations(self, request: Request) -> Response:
        """Everything that was said, stale or not."""
        reader = self.reader(request)
        file = self.files[reader.experiment.name]
        said = [(one, is_stale(reader, one)) for one in reversed(file.annotations())]
        rows, n_stale = table(reader, file.annotations())
        return self.page(
            "annotations.html",
            title=f"{reader.experiment.name} · annotations",
            reader=reader,
            said=said,
            ratings=rows,
            n_stale=n_stale,
            n_left_out=file.n_left_out,
            path=file.path,
            problems=[file.problem] if file.problem else [],
        )

    # -- what goes wrong --------------------------------------------------------------------------

    def not_there(self, request: Request, error: Exception) -> Response:
        """An address that names nothing."""
        detail = error.detail if isinstance(error, HTTPException) else str(error.args[0])
        return self.page("message.html", 404, title="Not here", message=f"{detail}.")

    def not_made(self, request: Request, error: Exception) -> Response:
        """A table that is missing, cut short or damaged."""
        name = request.path_params.get("experiment", "")
        return self.page(
            "message.html",
            404,
            title="Not made yet",
            message=str(error),
            reader=self.readers.get(name),
        )

    def broken(self, _request: Request, error: Exception) -> Response:
        """A fault of the explorer."""
        message = f"The explorer failed on this page ({type(error).__name__}). Its log says where."
        return self.page("message.html", 500, title="A fault", message=message)

    def app(self) -> ASGIApp:
        """The application, behind its guard."""
        at_circuit = "/{experiment}/{source}/{name}"
        routes = [
            Route("/", self.home),
            Mount("/.static", StaticFiles(directory=HERE / "static")),
            Route("/{experiment}/compare", self.compare),
            Route("/{experiment}/find", self.find),
            Route("/{experiment}/annotations", self.annotations),
            Route("/{experiment}/annotate/{source}/{name}", self.annotate, methods=["GET"]),
            Route("/{experiment}/annotate/{source}/{name}", self.save, methods=["POST"]),
            Route("/{experiment}/group/{source}/{name}", self.group, methods=["POST"]),
            Route("/{experiment}/features/{submodule}/{number}", self.feature),
            Route("/{experiment}/neurons/{submodule}/{number}", self.neuron),
            Route("/{experiment}/{source}", self.circuits),
            Route(at_circuit, self.circuit),
            Route(f"{at_circuit}/node", self.node),
            Route(at_circuit + "/file/{format}", self.download),
        ]
        handlers = {
            404: self.not_there,
            LookupError: self.not_there,
            ExperimentError: self.not_made,
            500: self.broken,
        }
        return Guard(Starlette(routes=routes, exception_handlers=handlers))


# -- what an address says -----------------------------------------------------------------------


def _asked(request: Request) -> Asked:
    query = request.query_params
    sort = query.get("sort", "size")
    return Asked(
        sort=sort,
        down=query.get("order", "up" if sort == "name" else "down") == "down",
        text=query.get("q", "").strip(),
        policy=query.get("errors", ""),
        page=_whole(query.get("page", "1")),
    )


def _state(request: Request, keys: Sequence[str]) -> dict[str, str]:
    """Those parts of an address that links to the same kind of page keep."""
    return {key: request.query_params[key] for key in keys if request.query_params.get(key)}


def _chosen(request: Request, key: str, among: Sequence[int], otherwise: int) -> int:
    value = _whole(request.query_params.get(key, ""))
    return value if value in among else otherwise


def _whole(text: str) -> int:
    """A whole number in an address; 0 for anything else."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _typed(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


async def _posted(request: Request) -> dict[str, str]:
    """The fields of a form.

    Raises:
        HTTPException: there is more than any form of ours holds.
    """
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _MOST_BYTES:
            raise HTTPException(413, f"A form holds {_MOST_BYTES:,} bytes at most")
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
