"""What files name as module:NAME is found from the current folder, installed command or not."""

import subprocess
import sys

import pytest

from orthotrain.errors import ConfigError
from orthotrain.lab.named import named


def test_it_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "only_here.py").write_text("VALUE = 7\n")
    # -P: like an installed command, which does not look into the current folder.
    code = "from orthotrain.lab.named import named; print(named('only_here:VALUE'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "7"


@pytest.mark.parametrize("reference", ["nothing", "math", "math:", "math:nothing", ":pi", ""])
def test_what_is_not_there_is_named(reference):
    with pytest.raises(ConfigError, match="need module:NAME"):
        named(reference)
