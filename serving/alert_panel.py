"""The dashboard's panel of alerts: the latest that were raised, as HTML. Whatever comes from data is escaped."""

from collections.abc import Sequence
from html import escape

from serving.alerts import AlertQuery, Raised, raised
from serving.query import iso
from serving.source import Source

SHOWN = 8


def latest(source: Source) -> list[Raised]:
    """The latest alerts of the source; none where its catalog defines none."""
    return raised(source.client, source.database, AlertQuery(source.catalog.alerts, limit=SHOWN))


def panel(found: Sequence[Raised]) -> str:
    """A table of alerts."""
    if not found:
        return '<p class="ls-note">No alert has been raised.</p>'
    rows = "".join(
        f'<tr data-alert="{escape(one.alert_id)}"><td>{iso(one.breached_at)}</td><td>{escape(one.alert)}</td>'
        f"<td>{escape(', '.join(one.dims.values()))}</td><td>{one.value:,.10g}</td></tr>"
        for one in found
    )
    heads = "".join(f"<th>{name}</th>" for name in ("breached", "alert", "key", "value"))
    return f'<div class="ls-scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
