"""Estimators and options as values: what they refuse, what they are called, what is the default."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest

import core.options
from core.circuit import attribute
from core.effects import node_effects
from core.errors import InputError
from core.estimators import Attribution, Estimator, Exact, IntegratedGradients

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown rule": ({"rule": "right"}, r"rule 'right' is not one of midpoint, left, gauss"),
    "no steps": ({"steps": 0}, r"at least one step, not 0"),
    "no tolerance at all": (
        {"rule": "adaptive", "tolerance": 0.0},
        r"tolerance 0\.0 is not above zero",
    ),
    "not a number": (
        {"rule": "adaptive", "tolerance": float("nan")},
        r"tolerance nan is not above zero",
    ),
    "a tolerance that nothing meets": ({"tolerance": 0.1}, r"rule midpoint with tolerance 0\.1"),
    "nothing to meet": ({"rule": "adaptive"}, r"rule adaptive with tolerance None.*needs one"),
    "fewer at most than to start with": (
        {"rule": "adaptive", "steps": 20, "tolerance": 0.1, "max_steps": 10},
        r"20 steps are halved .* max_steps is 10: raise it",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_estimator_that_makes_no_sense_is_refused_when_it_is_made(case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        IntegratedGradients(**options)


def test_without_a_tolerance_steps_are_not_bounded() -> None:
    assert IntegratedGradients(steps=1000).steps == 1000


@pytest.mark.parametrize(
    ("estimator", "label", "has_gradients"),
    [
        (IntegratedGradients(), "ig(midpoint, 10)", True),
        (IntegratedGradients(3, "gauss"), "ig(gauss, 3)", True),
        (IntegratedGradients(4, "adaptive", 0.1), "ig(adaptive, 4 to 64, tolerance 0.1)", True),
        (Attribution(), "attribution", True),
        (Exact(), "exact", False),
    ],
)
def test_labels_and_gradients(estimator: Estimator, label: str, has_gradients: bool) -> None:
    assert estimator.label == label
    assert estimator.has_gradients == has_gradients


def test_the_defaults_are_those_of_the_documentation() -> None:
    assert IntegratedGradients() == IntegratedGradients(
        steps=10, rule="midpoint", tolerance=None, max_steps=64
    )


@pytest.mark.parametrize("function", [node_effects, attribute])
def test_effects_are_by_integrated_gradients_unless_told(function: Callable[..., Any]) -> None:
    default = inspect.signature(function).parameters["estimator"].default
    assert default == IntegratedGradients()


def test_every_option_is_in_the_tuple_of_its_type() -> None:
    pairs = {
        "ESTIMATOR_NAMES": "EstimatorName",
        "RULES": "Rule",
        "SINGLE_METRICS": "SingleMetric",
        "ABLATIONS": "Ablation",
        "ERROR_NODES": "ErrorNodes",
        "DICTIONARY_KINDS": "DictionaryKind",
        "REPRESENTATIONS": "Representation",
        "REDUCTIONS": "Reduction",
        "ALGORITHMS": "Algorithm",
        "FORMATS": "Format",
        "DTYPES": "Dtype",
        "TOKENIZER_READINGS": "TokenizerReading",
        "POOLINGS": "Pooling",
        "VARIANTS": "Variant",
    }
    tuples = {name for name, value in vars(core.options).items() if isinstance(value, tuple)}
    assert tuples == {*pairs}
    for values, kind in pairs.items():
        assert getattr(core.options, values) == get_args(getattr(core.options, kind))


@pytest.mark.parametrize("module", ["core.options", "core.estimators", "core.errors"])
def test_settings_can_be_read_without_importing_torch(module: str) -> None:
    code = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
