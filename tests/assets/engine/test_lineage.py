"""What a circuit was made from can be told, also after its inputs were made again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from assets.circuits.behaviours import CLUSTER_BEHAVIOURS_STAGE
from assets.corpus.stages import CONTEXTS_STAGE
from assets.discovery.tokens import FILTERED_TOKENS_STAGE
from assets.engine import stage as engine
from assets.engine.lineage import (
    WIDTH,
    Making,
    describe_lineage,
    every_making,
    lineage,
    lineage_markdown,
    plain_lineage,
)
from assets.engine.records import FILE, Lineage, file_digest
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError
from assets.tables.places import circuit, evaluation
from pipelines.experiment import read_experiment
from tests.tiny_experiment import brought_up_to_date, write_corpus, write_experiment

CIRCUIT = circuit("clusters", "k00001").path
STAGES = {
    "contexts",
    "activation_cache",
    "saes",
    "dictionary_set",
    "filtered_tokens",
    "cluster_vectors",
    "cluster_assignments",
    "clusters",
    "cluster_behaviours",
    "circuits",
}


def of(experiment: Experiment, path: str = CIRCUIT) -> Making:
    return lineage(ArtifactStore(experiment.artifacts), path)


def inputs(making: Making) -> dict[str, Making]:
    """What a making was made from, by the names of tables."""
    return {m.table: m for one in making.inputs for m in one.makings}


def test_a_circuit_leads_back_to_model_text_dictionaries_and_file(finished: Experiment) -> None:
    store, root = ArtifactStore(finished.artifacts), of(finished)
    makings = list(every_making(root))
    assert {making.record["stage"] for making in makings if making.record} == STAGES
    tables = {making.table for making in makings}
    assert {f"saes/{name}" for name in finished.submodules} < tables
    written = {one.name: one.written for making in makings for one in making.inputs}
    assert written["source"] == "./corpus.jsonl"
    assert written["model"] == {
        "source": "./model",
        "revision": None,
        "dtype": "float32",
        "attn_input": False,
    }
    for making in makings:
        assert making.made["experiment"] == "tiny"
        assert making.made["file"] == file_digest(finished)
        assert making.made["with"]["torch"]
    assert store.lineage.text(file_digest(finished)) == finished.path.read_text()


def test_every_input_of_every_table_is_known_by_its_record(finished: Experiment) -> None:
    """A hash is of a table with a record, or of something that the experiment's file names."""
    store = ArtifactStore(finished.artifacts)
    for path in store.paths():
        for making in every_making(lineage(store, path)):
            assert making.made, making.table
            for one in making.inputs:
                assert one.makings or one.written is not None, (making.table, one.name)


def test_a_circuit_s_lineage_stays_when_everything_above_it_is_made_again(
    copied: Experiment,
) -> None:
    before, data = of(copied), plain_lineage(ArtifactStore(copied.artifacts), of(copied))
    write_corpus(copied.path.parent / "corpus.jsonl", n_documents=70)
    changed = read_experiment(write_experiment(copied.path.parent, filter={"n_samples": 20}))
    brought_up_to_date(changed, "cluster_behaviours")
    after = of(changed)
    assert _without_marks(describe_lineage(after)) == _without_marks(describe_lineage(before))
    marked = {making.table for making in every_making(after) if making.since}
    assert {"contexts", "filtered_tokens", "saes/embed", "behaviours/clusters"} <= marked
    assert not any(making.since for making in every_making(before))
    later = plain_lineage(ArtifactStore(changed.artifacts), after)
    assert later["makings"].keys() == data["makings"].keys()
    # The circuit that is made now is of the new ones.
    brought_up_to_date(changed)
    assert not any(making.since for making in every_making(of(changed)))
    assert inputs(of(changed))["dictionary_set"].content != inputs(before)["dictionary_set"].content


def _without_marks(tree: str) -> list[str]:
    """The words of a tree but its marks and branches, which decide where a line ends."""
    return re.sub(r"<< made again since|[│├└─]", " ", tree).split()


def test_the_same_contents_made_again_are_not_marked(copied: Experiment) -> None:
    before = of(copied)
    (copied.artifacts / "filtered_tokens.parquet").unlink()
    assert [making.since for making in every_making(of(copied))].count("gone since") == 1
    FILTERED_TOKENS_STAGE.run(copied)
    assert describe_lineage(of(copied)) == describe_lineage(before)
    assert lineage(ArtifactStore(copied.artifacts), "filtered_tokens").name != (
        next(m.name for m in every_making(before) if m.table == "filtered_tokens")
    )


def test_a_behaviour_that_stays_is_not_marked_when_its_table_changes(copied: Experiment) -> None:
    changed = read_experiment(
        write_experiment(copied.path.parent, clustering={"k": 3, "max_clusters": 2})
    )
    assert CLUSTER_BEHAVIOURS_STAGE.run(changed)
    behaviours = inputs(of(changed))["behaviours/clusters"]
    assert behaviours.content != ArtifactStore(changed.artifacts).content(
        CLUSTER_BEHAVIOURS_STAGE.key
    )
    assert behaviours.since == ""


def test_a_damaged_record_is_left_out_and_the_rest_is_told(copied: Experiment) -> None:
    file = copied.artifacts / FILE
    lines = file.read_bytes().splitlines(keepends=True)
    place = next(i for i, line in enumerate(lines) if b'"path":"filtered_tokens"' in line)
    lines[place] = lines[place].replace(b'"n_samples":24', b'"n_samples":25')
    file.write_bytes(b"".join(lines))
    assert Lineage(copied.artifacts).check() == [place + 1]
    told = describe_lineage(_fresh(copied))
    assert "filtered_tokens, code" in told  # its footer says the rest
    assert "when and where not recorded" in told
    (copied.artifacts / "filtered_tokens.parquet").unlink()
    told = describe_lineage(_fresh(copied))
    assert "<< gone since" in told
    assert "not recorded: neither a record nor that table is left" in told


def _fresh(experiment: Experiment) -> Making:
    """The lineage as another process reads it."""
    ArtifactStore(experiment.artifacts).lineage.check()
    return of(experiment)


def test_without_records_footers_tell_what_is_there_now(copied: Experiment) -> None:
    (copied.artifacts / FILE).unlink()
    root = _fresh(copied)
    assert {"dictionary_set"} == inputs(root).keys()
    assert inputs(inputs(root)["dictionary_set"]).keys() == {"contexts"}
    assert root.made == {}


def test_a_tree_fits_into_the_terminal(finished: Experiment) -> None:
    for path in (CIRCUIT, evaluation("tasks", "simple").path, "evaluation_summary"):
        lines = describe_lineage(of(finished, path)).splitlines()
        assert max(map(len, lines)) <= WIDTH
        assert lines[0].startswith(path)


def test_the_tree_in_the_ui_is_short(finished: Experiment) -> None:
    told = lineage_markdown(of(finished))
    assert len(told) < 4000
    assert told.count("`dictionary_set`") == 2
    assert "4 of saes, `saes/embed` to `saes/resid_1`" in told
    assert "source ./corpus.jsonl" not in told
    assert "./corpus.jsonl" in told


def test_the_summary_is_of_all_circuits_and_evaluations(finished: Experiment) -> None:
    told = describe_lineage(of(finished, "evaluation_summary"))
    assert "3 of circuits: circuits/clusters/k00000/circuit to circuits/clusters/k00002" in told
    assert "1 of task_evaluations: evaluations/tasks/simple" in told


def test_what_was_adopted_says_whose_code_made_it(
    copied: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other:
        def digest(self, _entries: object) -> str:
            return "other"

    before = of(copied, "contexts")
    assert before.record is not None
    monkeypatch.setattr(engine, "installed", Other)
    CONTEXTS_STAGE.adopt(copied)
    after = of(copied, "contexts")
    assert after.record is not None
    assert after.record["made_by"] == before.record["code"] != after.record["code"]
    assert after.made == before.made
    assert "adopted from code" in describe_lineage(after)


def test_an_unknown_table_is_refused(finished: Experiment) -> None:
    with pytest.raises(ExperimentError, match=r"no whole table at .*nothing\.parquet"):
        of(finished, "nothing")


# -- records ---------------------------------------------------------------------------------------


@pytest.fixture
def records(copied: Experiment) -> Lineage:
    return Lineage(copied.artifacts)


def test_records_are_only_added(records: Lineage) -> None:
    before = records.file.read_bytes()
    name = records.add({"path": "a", "fingerprint": "f", "tables": {"a": "1", "b": "2"}})
    assert records.file.read_bytes().startswith(before)
    assert records.name("b", "f") == name
    again = records.add({"path": "a", "fingerprint": "f", "tables": {"a": "1"}, "made": {}})
    assert records.name("a", "f") == again != name
    assert records.get(name) == {"path": "a", "fingerprint": "f", "tables": {"a": "1", "b": "2"}}


def test_what_a_killed_writer_left_is_skipped_and_told(records: Lineage) -> None:
    n = len(records.file.read_bytes().splitlines())
    with records.file.open("ab") as file:
        file.write(b'{"id": "abc", "pa')
    assert records.check() == [n + 1]
    name = records.add({"path": "a", "fingerprint": "f", "tables": {"a": "1"}})
    assert records.name("a", "f") == name
    assert records.check() == [n + 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.replace(b"contexts", b"context5"),
        lambda _line: b"[1]\n",
        lambda _line: b'"text"\n',
        lambda _line: b"\xff\xfe\n",
        lambda line: line[:20] + b"\n",
    ],
)
def test_a_changed_line_counts_for_nothing(
    records: Lineage, change: Callable[[bytes], bytes]
) -> None:
    lines = records.file.read_bytes().splitlines(keepends=True)
    at = [json.loads(line).get("path") for line in lines].index("contexts")
    lines[at] = change(lines[at])
    records.file.write_bytes(b"".join(lines))
    assert records.check() == [at + 1]


def test_two_that_read_see_what_the_other_added(records: Lineage) -> None:
    other = Lineage(records.file.parent)
    assert other.name("a", "f") is None
    name = records.add({"path": "a", "fingerprint": "f", "tables": {"a": "1"}})
    assert other.name("a", "f") == name
    assert other.get(name) is not None
