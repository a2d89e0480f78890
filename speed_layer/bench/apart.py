"""Engines of a bench's own: they share neither data nor ports with a stack that is up."""

from collections.abc import Iterable

from infra.processes import is_free
from infra.settings import Settings

_PORTS = range(20_000, 25_000)


def apart(where: Settings, name: str, ports: Iterable[int] = _PORTS) -> Settings:
    """The same settings with a data directory of their own, under the other one, and ports that are free now."""
    fields = [field for field in Settings.model_fields if field.endswith("_port")]
    free = (port for port in ports if is_free(where.host, port))
    own = dict(zip(fields, free, strict=False))
    return where.model_copy(update={"data_dir": where.data_dir.absolute() / name, **own})
