"""When Dagster reruns a stage by itself."""

from collections.abc import Iterator, Sequence
from random import Random

import dagster as dg
import pytest

from assets.engine.automation import (
    rerun_on_new_data,
    rerun_when_all_are_done,
    together_with_parent,
)
from assets.engine.partitions import circuits_together

CLUSTERS = [f"k{i:05d}" for i in range(12)]
PARTITIONS = dg.StaticPartitionsDefinition(CLUSTERS)


def _graph(version: str = "1") -> dg.Definitions:
    """The shape of the real graph, with nothing to compute."""

    @dg.asset
    def dictionary_set(context: dg.AssetExecutionContext) -> dg.MaterializeResult[None]:
        return dg.MaterializeResult(data_version=dg.DataVersion(context.run.tags["content"]))

    @dg.asset(
        deps=[dictionary_set],
        partitions_def=PARTITIONS,
        backfill_policy=circuits_together(),
        automation_condition=rerun_on_new_data(),
        code_version=version,
    )
    def circuits() -> None: ...

    @dg.asset(
        deps=[circuits],
        partitions_def=PARTITIONS,
        backfill_policy=circuits_together(),
        automation_condition=together_with_parent(),
        code_version="1",
    )
    def circuit_evaluations() -> None: ...

    @dg.asset(
        deps=[circuits, circuit_evaluations],
        automation_condition=rerun_when_all_are_done(),
        code_version="1",
    )
    def evaluation_summary() -> None: ...

    return dg.Definitions([dictionary_set, circuits, circuit_evaluations, evaluation_summary])


def _materialize(
    instance: dg.DagsterInstance, names: Sequence[str], content: str = "a", keys: str = ""
) -> None:
    definitions = _graph()
    tags = {"content": content}
    if keys:
        first, last = keys.split("..")
        tags |= {
            "dagster/asset_partition_range_start": first,
            "dagster/asset_partition_range_end": last,
        }
    job = definitions.resolve_implicit_global_asset_job_def()
    job.execute_in_process(
        instance=instance, asset_selection=[dg.AssetKey(name) for name in names], tags=tags
    )


Settled = tuple[dg.DagsterInstance, dg.EvaluateAutomationConditionsResult]


@pytest.fixture
def settled() -> Iterator[Settled]:
    """Everything materialized once, and looked at once."""
    everything = f"{CLUSTERS[0]}..{CLUSTERS[-1]}"
    with dg.DagsterInstance.ephemeral() as instance:
        _materialize(instance, ["dictionary_set"])
        _materialize(instance, ["circuits", "circuit_evaluations"], keys=everything)
        _materialize(instance, ["evaluation_summary"])
        yield instance, dg.evaluate_automation_conditions(_graph(), instance)


def _requested(settled: Settled, definitions: dg.Definitions | None = None) -> dict[str, object]:
    instance, before = settled
    found = dg.evaluate_automation_conditions(
        definitions or _graph(), instance, cursor=before.cursor
    )
    partitioned = {
        name: found.get_requested_partitions(dg.AssetKey(name))
        for name in ("circuits", "circuit_evaluations")
    }
    whole = found.get_num_requested(dg.AssetKey("evaluation_summary"))
    return {
        **{name: {str(k) for k in keys} for name, keys in partitioned.items()},
        "summary": whole,
    }


def test_nothing_new_requests_nothing(settled: Settled) -> None:
    assert settled[1].total_requested == 0
    assert _requested(settled) == {"circuits": set(), "circuit_evaluations": set(), "summary": 0}


def test_the_same_dictionaries_again_request_nothing(settled: Settled) -> None:
    _materialize(settled[0], ["dictionary_set"], content="a")
    assert _requested(settled)["circuits"] == set()


def test_new_dictionaries_request_all_circuits_and_their_evaluations_together(
    settled: Settled,
) -> None:
    _materialize(settled[0], ["dictionary_set"], content="b")
    found = _requested(settled)
    assert found["circuits"] == found["circuit_evaluations"] == set(CLUSTERS)
    assert found["summary"] == 0


def test_a_changed_setting_is_rerun_like_new_data(settled: Settled) -> None:
    found = _requested(settled, _graph(version="2"))
    assert found["circuits"] == found["circuit_evaluations"] == set(CLUSTERS)


def test_partitions_written_in_any_order_do_not_request_evaluations_one_by_one(
    settled: Settled,
) -> None:
    some = Random(0).sample(CLUSTERS, 5)
    for key in some:
        _materialize(settled[0], ["circuits"], keys=f"{key}..{key}")
    assert _requested(settled)["circuit_evaluations"] == set()
