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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from assets.checks import broken_checks
from assets.engine.events import ONE_PLANNED_EVENT
from assets.engine.lock import alone
from assets.engine.processes import PROCESS, end_dead_runs, this_process
from assets.engine.stage import Stage
from assets.engine.store import ArtifactStore
from assets.settings import Experiment, ExperimentError
from core.errors import CircuitError
from pipelines.definitions import build_definitions
from pipelines.experiment import EXPERIMENTS, ROOT, check_places, read_experiment
from pipelines.home import dagster_home, lost_database
from pipelines.plan import Run, make_plan, runs_of
from pipelines.report import report
from pipelines.reruns import PASS, report_files
from pipelines.stages import stages_of

_LOGGER = "progress"
_SAY_EVERY = 5.0
_UI = {".dagster/repository": f"__repository__@{ROOT.name}"}
"""Tag by which the UI, which names a code location after its folder, puts runs in its timeline."""


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
    """Prints what stages say, no faster than a person reads, and notes what each took.

    Args:
        stages: names of the run's stages by Dagster's names of their steps.
        ended: told of each stage when the next one begins or the run ends.
    """

    def __init__(self, stages: Mapping[str, str], ended: Callable[[Took], None]) -> None:
        super().__init__()
        self._stages, self._ended = stages, ended
        self._stage, self._began, self._said = "", 0.0, 0.0

    def emit(self, record: logging.LogRecord) -> None:
        meta = getattr(record, "dagster_meta", {})
        event = meta.get("dagster_event")
        if event is not None:
            self._follow(event)
            return
        now = time.monotonic()
        if record.levelno < logging.INFO:
            return
        if now - self._said >= _SAY_EVERY or record.levelno >= logging.WARNING:
            self._said = now
            print(f"    {meta.get('orig_message', record.getMessage())}", flush=True)

    def _follow(self, event: dg.DagsterEvent) -> None:
        kind = event.event_type
        step = event.step_key or ""
        if kind is dg.DagsterEventType.STEP_START and step in self._stages:
            self.end()
            _forget_peak()
            self._stage, self._began = self._stages[step], time.perf_counter()
        elif kind is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            found = event.asset_check_evaluation_data
            if not found.passed:
                print(f"    warning: {found.description}", flush=True)

    def end(self) -> None:
        """Tell of the stage that ran last, if any."""
        if self._stage:
            self._ended(Took(self._stage, time.perf_counter() - self._began, _peak_mib()))
        self._stage = ""


def run_experiment(
    experiment: Experiment,
    instance: dg.DagsterInstance,
    stages: Sequence[Stage] | None = None,
    *,
    force: Sequence[str] = (),
    ended: Callable[[Took], None] = lambda _took: None,
) -> list[Took]:
    """Bring the experiment up to date; what each stage took.

    Args:
        experiment: read by `read_experiment`.
        instance: records the runs and materializations.
        stages: these only; all where None.
        force: names of stages that are made again even if they are up to date.
        ended: told of each stage as it ends.

    Raises:
        CircuitError, ExperimentError: a stage cannot do its work; the message says why.
        ExperimentError: a blocking check failed.
    """
    every = list(stages_of(experiment) if stages is None else stages)
    took: list[Took] = []

    def note(one: Took) -> None:
        took.append(one)
        ended(one)

    report_files(experiment, instance, every)
    progress = _Progress({_step(experiment, stage.name): stage.name for stage in every}, note)

    def logger(_context: dg.InitLoggerContext) -> logging.Logger:
        made = logging.Logger("pipeline", logging.DEBUG)
        made.addHandler(progress)
        return made

    # Once: a file that is edited meanwhile changes nothing in what is under way.
    loggers = {_LOGGER: dg.LoggerDefinition(logger)}
    job = build_definitions([experiment.path], loggers=loggers)
    for run in runs_of(experiment, every):
        try:
            _execute(job.resolve_implicit_global_asset_job_def(), experiment, instance, run, force)
        finally:
            progress.end()
    return took


def _step(experiment: Experiment, stage: str) -> str:
    """Dagster's name of the step that makes a stage's asset."""
    return f"{experiment.name}__{stage}".replace("-", "_")


def _execute(
    job: dg.JobDefinition,
    experiment: Experiment,
    instance: dg.DagsterInstance,
    run: Run,
    force: Sequence[str],
) -> None:
    """One run, in this process."""
    forced = [stage.name for stage in run.stages if stage.name in force]
    try:
        job.execute_in_process(
            instance=instance,
            asset_selection=[dg.AssetKey([experiment.name, stage.name]) for stage in run.stages],
            tags={**run.tags, **_UI, PROCESS: this_process()},
            run_config={
                "loggers": {_LOGGER: {}},
                "ops": {_step(experiment, name): {"config": {"force": True}} for name in forced},
            },
        )
    except dg.DagsterError:
        # Dagster's own error names the check but not what it found.
        if broken := _first_broken(experiment, run.stages):
            raise ExperimentError("\n".join(broken)) from None
        raise


def _first_broken(experiment: Experiment, stages: Sequence[Stage]) -> list[str]:
    """What the blocking checks of the first stage say that fails any."""
    for stage in stages:
        try:
            if broken := broken_checks(experiment, stage.name):
                return broken
        except ExperimentError:  # its table is not there: nothing after it is
            return []
    return []


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
    parser.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="STAGE",
        help="make again what this stage made even if it is up to date; may be given several times",
    )
    parser.add_argument(
        "--plan", action="store_true", help="say what is stale, and why, and do nothing"
    )
    options = parser.parse_args(arguments)
    if options.plan and (options.force or options.adopt):
        parser.error("--plan does nothing: give it without --force and --adopt")
    if both := set(options.force) & set(options.adopt):
        parser.error(f"{', '.join(sorted(both))}: kept by --adopt or made again by --force?")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    options = _parse(arguments)
    path = options.experiment.resolve()
    # Places in dagster.yaml are relative to the working directory.
    os.chdir(ROOT)
    os.environ.setdefault(*ONE_PLANNED_EVENT)
    try:
        if options.plan:
            print_plan(read_experiment(path))
        else:
            os.environ.setdefault("DAGSTER_HOME", str(dagster_home()))
            _run_and_report(path, options.adopt, options.force)
    except Exception as error:
        cause = lost_database(error) or _cause(error)
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
        kept = stages[name].adopt(experiment)
        print(f"{name}: {len(kept)} kept as they are, though the code has changed since\n")


def _print_took(took: Took) -> None:
    print(f"{took.stage:<24}{took.seconds:8.1f} s {took.peak_mib:9,.0f} MiB", flush=True)


def _check_names(experiment: Experiment, names: Sequence[str]) -> None:
    known = [stage.name for stage in stages_of(experiment)]
    for name in names:
        if name not in known:
            raise ExperimentError(f"no stage is called {name}: there are {', '.join(known)}.")


def print_plan(experiment: Experiment) -> None:
    """What is stale and why, a line for each stage."""
    check_places(experiment)
    plan = make_plan(experiment, by_itself=False)
    lines = [(todo.stage.name, todo.why) for todo in plan.todo] + list(plan.held.items())
    for name, why in lines:
        print(f"{name:<24}{why}")
    if not lines:
        print("everything is up to date")


def _run_and_report(path: Path, adopted: Sequence[str], forced: Sequence[str]) -> None:
    experiment = read_experiment(path)
    _check_names(experiment, [*adopted, *forced])
    check_places(experiment)
    store = ArtifactStore(experiment.artifacts)
    store.check_writable()
    store.sweep()
    if store.older_layout():
        print(
            f"{store.at} was written by an earlier version in another layout: none of it is "
            "used, and everything is made again beside it. Remove it when you no longer need it.\n"
        )
    print(f"{experiment.name}: {experiment.settings.description or experiment.path}\n")
    began = time.perf_counter()
    with (
        dg.DagsterInstance.get() as instance,
        alone(experiment.artifacts, PASS, lambda told: print(told, flush=True)),
    ):
        for run_id in end_dead_runs(instance):
            print(f"run {run_id[:8]} had ended without a word: its process is gone\n")
        _adopt(experiment, adopted)
        run_experiment(experiment, instance, force=forced, ended=_print_took)
    print(f"{'in all':<24}{time.perf_counter() - began:8.1f} s\n")
    print(report(experiment, store))


if __name__ == "__main__":
    sys.exit(main())
