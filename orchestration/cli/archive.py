"""`archive`: the log copied to Parquet, so that days can be recomputed when Kafka no longer has them."""

import typer

from orchestration.cli.common import (
    FOUND,
    CatalogOption,
    Failed,
    JsonOption,
    SourceOption,
    err,
    fail,
    load,
    of_source,
    out,
    print_json,
    settings,
)
from orchestration.progress import progress_bar


def register(app: typer.Typer) -> None:
    """Add the commands."""
    family = typer.Typer(no_args_is_help=True, help="The log, copied to Parquet files.")
    family.command()(copy)
    family.command()(verify)
    app.add_typer(family, name="archive", rich_help_panel="Layers")


def copy(catalog: CatalogOption = None, source: SourceOption = None, as_json: JsonOption = False) -> None:
    """Copy what has come since the last time. What had expired before is a gap: exit code 1."""
    from batch_layer.archiving import archiver_of, catch_up  # noqa: PLC0415 - it takes a while to import

    sources, where = load(catalog, source), settings()
    found = []
    for each in sources:
        archiver, offsets = archiver_of(where, each.catalog)
        with progress_bar(err) as told:
            copied = catch_up(archiver, offsets, told)
        gaps = [{"topic_partition": gap.topic_partition, "begin": gap.begin, "end": gap.end} for gap in copied.gaps]
        archived = {"archive": where.archive, "topic": each.catalog.topic, "records": copied.records, "gaps": gaps}
        found.append(of_source(each, sources, archived))
        if not as_json:
            out.print(f"{each.catalog.topic}: {copied.records:,} records copied to {where.archive}", highlight=False)
            for gap in copied.gaps:
                lost = f"offsets {gap.begin} to {gap.end} of partition {gap.topic_partition}"
                err.print(f"{each.catalog.topic}: {lost} had expired before they were copied", highlight=False)
    if as_json:
        print_json({"archives": found})
    if any(one["gaps"] for one in found):
        raise Failed


def verify(catalog: CatalogOption = None, source: SourceOption = None, as_json: JsonOption = False) -> None:
    """Read the archive and compare each block with what was copied, and with the log as far as that reaches."""
    from batch_layer.archive import ArchiveError  # noqa: PLC0415 - as above
    from batch_layer.archiving import archiver_of, compare  # noqa: PLC0415

    sources, where = load(catalog, source), settings()
    found = []
    for each in sources:
        archiver, offsets = archiver_of(where, each.catalog)
        try:
            with progress_bar(err) as told:
                copied = [one for mine in archiver.archive.stretches().values() for one in mine]
                differing = compare(archiver, copied, offsets, told)
        except ArchiveError as error:
            fail(str(error), FOUND)
        listed = {str(number): blocks for number, blocks in differing.items()}
        found.append(of_source(each, sources, {"topic": each.catalog.topic, "differing": listed}))
        if not as_json:
            verdict = (
                f"blocks that differ: {listed}" if listed else "the archive holds what was copied, and what the log has"
            )
            out.print(f"{each.catalog.topic}: {verdict}", highlight=False)
    if as_json:
        print_json({"archives": found})
    if any(one["differing"] for one in found):
        raise Failed
