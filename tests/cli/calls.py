"""Commands called as a user does: here, and in a process without some packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from orthotrain.cli import main

SOURCE = Path(__file__).resolve().parents[2] / "src"


def fails(capsys, *arguments):
    """The error line of a command that must end with exit code 2."""
    assert main([*map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("orthotrain: error: ")
    assert error.count("\n") == 1
    return error


def without(blocked, *arguments):
    """The command in a process without these modules; it loads no others that take long."""
    code = (
        f"import atexit, os, sys; sys.path.insert(0, {str(SOURCE)!r})\n"
        f"sys.modules.update(dict.fromkeys({blocked!r}))\n"
        "slow = ('matplotlib', 'sklearn', 'PIL')\n"
        "atexit.register(lambda: any(map(sys.modules.get, slow)) and os._exit(9))\n"
        "from orthotrain.cli.main import main\n"
        f"sys.exit(main({[*map(str, arguments)]!r}))\n"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
