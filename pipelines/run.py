"""The main job without a server: `python -m pipelines.run [experiments/NAME.yaml]`.

Runs every stage of an experiment in order, in this process, on the checkout's own Dagster
instance, so that `make ui` shows afterwards what was materialized. Work that is already done is
not done again. Ends with what was found.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from assets.checks import broken_checks
from assets.engine.stage import PartitionedStage, Stage
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError
from core.errors import CircuitError
from pipelines.definitions import build_definitions, stages_of
from pipelines.experiment import EXPERIMENTS, ROOT, check_places, read_experiment
from pipelines.report import report

_RANGE_START = "dagster/asset_partition_range_start"
_RANGE_END = "dagster/asset_partition_range_end"
_LOGGER = "progress"
_SAY_EVERY = 5.0


@dataclass(frozen=True)
class Took:
    """What a stage took.

    Attributes:
        stage: its name.
        seconds: wall-clock time.
        peak_mib: largest resident memory of the process while it ran.
    """

    stage: str
    seconds: float
    peak_mib: float


class _Progress(logging.Handler):
    """Prints what stages say, but not more often than a person can read."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.last = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        is_event = getattr(record, "dagster_meta", {}).get("dagster_event") is not None
        if is_event or record.levelno < logging.INFO:
            return
        now = time.monotonic()
        if now - self.last >= _SAY_EVERY or record.levelno >= logging.WARNING:
            self.last = now
            message = getattr(record, "dagster_meta", {}).get("orig_message", record.getMessage())
            print(f"    {message}", flush=True)


def _progress_logger(_context: dg.InitLoggerContext) -> logging.Logger:
    logger = logging.Logger("pipeline", logging.INFO)
    logger.addHandler(_Progress())
    return logger


def run_experiment(
    experiment: Experiment, instance: dg.DagsterInstance, stages: Sequence[Stage] | None = None
) -> Iterator[Took]:
    """Bring the experiment up to date stage by stage; what each took, as it ends.

    Args:
        experiment: read by `read_experiment`.
        instance: records the materializations.
        stages: these only; all where None.

    Raises:
        CircuitError, ExperimentError: a stage cannot do its work; the message says why.
        ExperimentError: a blocking check failed.
    """
    loggers = {_LOGGER: dg.LoggerDefinition(_progress_logger)}
    definitions = build_definitions([experiment.path], loggers=loggers)
    job = definitions.resolve_implicit_global_asset_job_def()
    for stage in stages_of(experiment) if stages is None else stages:
        _forget_peak()
        began = time.perf_counter()
        try:
            result = job.execute_in_process(
                instance=instance,
                asset_selection=[dg.AssetKey([experiment.name, stage.name])],
                tags=_partition_range(stage, experiment),
                run_config={"loggers": {_LOGGER: {}}},
            )
        except dg.DagsterError:
            # Dagster's own error names the check but not what it found.
            if broken := broken_checks(experiment, stage.name):
                raise ExperimentError("\n".join(broken)) from None
            raise
        _print_warnings(result)
        yield Took(stage.name, time.perf_counter() - began, _peak_mib())


def _partition_range(stage: Stage, experiment: Experiment) -> dict[str, str]:
    if not isinstance(stage, PartitionedStage):
        return {}
    keys = stage.partitions(experiment)
    return {_RANGE_START: keys[0], _RANGE_END: keys[-1]}


def _print_warnings(result: dg.ExecuteInProcessResult) -> None:
    for found in result.get_asset_check_evaluations():
        if not found.passed:
            print(f"    warning: {found.description}", flush=True)


def _forget_peak() -> None:
    """Let the kernel count this process's peak memory afresh, where it can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak_mib() -> float:
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _cause(error: BaseException) -> BaseException:
    """What a stage itself raised, below Dagster's own errors and above what it came from."""
    while not isinstance(error, ExperimentError | CircuitError) and error.__cause__:
        error = error.__cause__
    return error


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m pipelines.run", description=__doc__)
    default = EXPERIMENTS / "testbed.yaml"
    parser.add_argument("experiment", nargs="?", type=Path, default=default, help="a YAML file")
    parser.add_argument(
        "--adopt",
        action="append",
        default=[],
        metavar="STAGE",
        help="keep what this stage made although its code has changed since (not its settings or "
        "inputs); may be given several times",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    options = _parse(arguments)
    path = options.experiment.resolve()
    # Places in dagster.yaml are relative to the working directory.
    os.chdir(ROOT)
    os.environ.setdefault("DAGSTER_HOME", str(ROOT))
    try:
        _run_and_report(path, options.adopt)
    except (ExperimentError, CircuitError, dg.DagsterError) as error:
        cause = _cause(error)
        if not isinstance(cause, ExperimentError | CircuitError):
            raise
        print(f"\n{type(cause).__name__}: {cause}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        print("\nInterrupted. Running again goes on from what is finished.", file=sys.stderr)
        return 130
    return 0


def _adopt(experiment: Experiment, names: Sequence[str]) -> None:
    """Keep what these stages made although their code has changed since."""
    stages = {stage.name: stage for stage in stages_of(experiment)}
    for name in names:
        if name not in stages:
            raise ExperimentError(f"no stage is called {name}: there are {', '.join(stages)}.")
        kept = stages[name].adopt(experiment)
        print(f"{name}: {len(kept)} kept as they are, though the code has changed since\n")


def _run_and_report(path: Path, adopted: Sequence[str]) -> None:
    experiment = read_experiment(path)
    check_places(experiment)
    store = ArtifactStore(experiment.artifacts)
    store.check_writable()
    store.sweep()
    if store.older_layout():
        print(
            f"{store.root} was written by an earlier version in another layout: none of it is "
            "used, and everything is made again beside it. Remove it when you no longer need it.\n"
        )
    print(f"{experiment.name}: {experiment.settings.description or experiment.path}\n")
    _adopt(experiment, adopted)
    seconds = 0.0
    with dg.DagsterInstance.get() as instance:
        for step in run_experiment(experiment, instance):
            seconds += step.seconds
            took = f"{step.stage:<24}{step.seconds:8.1f} s {step.peak_mib:9,.0f} MiB"
            print(took, flush=True)
    print(f"{'in all':<24}{seconds:8.1f} s\n")
    print(report(experiment, store))


if __name__ == "__main__":
    sys.exit(main())
