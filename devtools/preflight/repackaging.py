"""Dify's own command line can package the unpacked package again, as the marketplace does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from devtools.preflight.start import unpack

if TYPE_CHECKING:
    from devtools.preflight.opened import Package

__all__ = ["repackaging_error"]


def repackaging_error(package: Package, cli: str) -> str:
    """Return why ``cli``, the path of the command line, refuses it; empty if it does not."""
    with TemporaryDirectory(prefix="preflight-") as temporary:
        folder, output = Path(temporary) / "plugin", Path(temporary) / "again.difypkg"
        unpack(package, folder, leave_out=set())
        done = subprocess.run(
            [cli, "plugin", "package", folder, "-o", output],
            cwd=temporary,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == 0 and output.is_file():
            return ""
        said = " ".join((done.stdout + done.stderr).split())
        return f"{Path(cli).name} plugin package refuses the unpacked package: {said}"
