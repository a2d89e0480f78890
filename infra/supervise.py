"""One supervisor per service: `python -m infra.supervise RUN_DIR NAME [OWNER_PID]`.

It starts the service described by `RUN_DIR/NAME.spec.json`, starts it again whenever it ends, keeps
`RUN_DIR/NAME.json` true, and on SIGTERM stops the service and itself. The service leads a process group of its own:
whatever it leaves behind is killed before it is started again. With an owner, the service ends when that process does.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from infra.processes import Identity, read_json, write_json

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _LONG_RUN_S = 0.2, 10.0, 30.0
_OWNER_CHECK_S = 1.0
_PAUSE_STEP_S = 0.05
_ARGUMENTS_WITH_OWNER = 4


class Supervisor:
    """Runs one service until told to stop."""

    def __init__(self, run_dir: Path, name: str, owner: Identity | None) -> None:
        spec = read_json(run_dir / f"{name}.spec.json")
        if spec is None:
            msg = f"there is no readable {name}.spec.json in {run_dir}. start services with `lockstep up`"
            raise SystemExit(msg)
        self.spec: dict[str, Any] = spec
        self.state_file = run_dir / f"{name}.json"
        self.owner = owner
        self.stopping = False
        self.restarts = 0
        self.child: subprocess.Popen[bytes] | None = None
        self.asked: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Start the service, and again after each end, until told to stop."""
        pause = _FIRST_PAUSE_S
        while not self.stopping:
            started = time.monotonic()
            exit_code = self._run_once()
            if self.stopping:
                break
            pause = _FIRST_PAUSE_S if time.monotonic() - started > _LONG_RUN_S else pause
            self.restarts += 1
            self._write(None, exit_code)
            self._pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        self.state_file.unlink(missing_ok=True)

    def _run_once(self) -> int:
        with Path(self.spec["log"]).open("ab") as log:
            self.child = subprocess.Popen(
                self.spec["argv"],
                env={**os.environ, **self.spec["env"]},
                cwd=self.spec["cwd"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        identity = Identity.of(self.child.pid) or Identity(self.child.pid, time.time())
        self._write(identity, None)
        exit_code = self._wait(self.child)
        identity.kill_group()  # descendants that outlived it
        return exit_code

    def _wait(self, child: "subprocess.Popen[bytes]") -> int:
        """Wait for the end of the service; stop it when told to, or when the owner is gone."""
        ended = threading.Event()
        threading.Thread(target=lambda: (child.wait(), ended.set()), daemon=True).start()
        while not ended.wait(_OWNER_CHECK_S):
            if self.owner is not None and not self.owner.alive():
                self.stopping = True
            if self.stopping:
                self._terminate()
                if not ended.wait(self.spec["stop_timeout_s"]):
                    child.kill()
        return child.returncode

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self.stopping:
            time.sleep(_PAUSE_STEP_S)

    def stop(self, *_: object) -> None:
        """Stop the service, then the supervisor; a signal handler."""
        self.stopping = True
        self._terminate()

    def _terminate(self) -> None:
        """Ask the service to end, once: a second signal makes some servers drop what they are finishing."""
        if self.child is not None and self.asked is not self.child:
            self.asked = self.child
            self.child.terminate()

    def _write(self, identity: Identity | None, exit_code: int | None) -> None:
        me = Identity.of(os.getpid())
        write_json(
            self.state_file,
            {
                "name": self.spec["name"],
                "address": self.spec["address"],
                "needs": self.spec["needs"],
                "digest": self.spec["digest"],
                "log": self.spec["log"],
                "supervisor": me.as_json() if me else None,
                "process": identity.as_json() if identity else None,
                "restarts": self.restarts,
                "exit_code": exit_code,
            },
        )


def main(arguments: list[str]) -> int:
    """Supervise one service until SIGTERM or SIGINT."""
    run_dir, name = Path(arguments[1]), arguments[2]
    owner = Identity.of(int(arguments[3])) if len(arguments) == _ARGUMENTS_WITH_OWNER else None
    supervisor = Supervisor(run_dir, name, owner)
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, supervisor.stop)
    supervisor.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
