"""The local stack's core from a shell: `python -m infra up|status|down` (`lockstep up` adds the layers above).

`python -m infra run SERVICE` becomes one of its services, without a supervisor: what a container runs.
"""

import os
import sys
from collections.abc import Sequence

from infra.jars import JarError
from infra.java import JavaError
from infra.services import core_services
from infra.settings import Settings, SettingsError, load_settings
from infra.stack import StackError, down, status, up


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        settings = load_settings()
        if arguments == ["up"]:
            up(settings, core_services(settings), report=_say)
        elif arguments == ["down"]:
            down(settings, report=_say)
        elif arguments[:1] == ["run"] and len(arguments) > 1:
            return _become(settings, arguments[1])
        elif arguments != ["status"]:
            _say("usage: python -m infra up|status|down|run SERVICE")
            return 2
    except (JarError, JavaError, SettingsError, StackError) as error:
        _say(str(error))
        return 2
    for entry in status(settings):
        print(
            f"{entry.name:16} {entry.state:12} {entry.pid or '-':>8} {entry.address:24} {entry.rss_bytes >> 20:6} MiB"
        )
    return 0


def _become(settings: Settings, name: str) -> int:
    """Replace this process by a service; returns only if there is none of that name."""
    services = {service.name: service for service in core_services(settings)}
    if name not in services:
        _say(f"service must be one of {', '.join(f'`{known}`' for known in services)}; got `{name}`")
        return 2
    service = services[name]
    service.prepare()
    os.execvpe(service.argv[0], service.argv, {**os.environ, **service.env})


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
