"""What `import core` offers."""

import subprocess
import sys

import pytest

import core


@pytest.mark.parametrize("name", core.__all__)
def test_every_public_name_is_there_and_explains_itself(name: str) -> None:
    found = getattr(core, name)
    assert found.__name__ == name
    assert found.__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'core' has no attribute 'find_circuits'"):
        core.find_circuits  # noqa: B018


def test_errors_can_be_caught_without_importing_torch() -> None:
    code = "import core.errors, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
