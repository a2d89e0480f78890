"""The command line as a user runs it."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.settings import Settings


@dataclass(frozen=True)
class Lockstep:
    """Runs `lockstep` as a user does, in a process of its own."""

    settings: Settings
    catalog: Path

    def start(self, *arguments: str, **options: Any) -> "subprocess.Popen[str]":
        """Start a command without waiting for it."""
        command = [sys.executable, "-m", "orchestration.cli.main", "--catalog", str(self.catalog), *arguments]
        return subprocess.Popen(command, env={**os.environ, **self.settings.environ()}, text=True, **options)

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end; returns what it printed on stdout."""
        process = self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = process.communicate()
        assert process.returncode == code, f"{arguments}: {out}\n{err}"
        return out

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The JSON object that a command prints."""
        return json.loads(self(*arguments, "--json", code=code))
