"""The local stack's core from a shell: `python -m infra up|status|down` (`lockstep up` adds the layers above)."""

import sys
from collections.abc import Sequence

from infra.jars import JarError
from infra.java import JavaError
from infra.services import core_services
from infra.settings import SettingsError, load_settings
from infra.stack import StackError, down, status, up


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    try:
        settings = load_settings()
        if arguments == ["up"]:
            up(settings, core_services(settings), report=_say)
        elif arguments == ["down"]:
            down(settings, report=_say)
        elif arguments != ["status"]:
            _say("usage: python -m infra up|status|down")
            return 2
    except (JarError, JavaError, SettingsError, StackError) as error:
        _say(str(error))
        return 2
    for entry in status(settings):
        print(
            f"{entry.name:16} {entry.state:12} {entry.pid or '-':>8} {entry.address:24} {entry.rss_bytes >> 20:6} MiB"
        )
    return 0


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
