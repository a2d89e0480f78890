"""What the batch layer is measured beside: the same metrics by other means, each as short as one writes it first.

They do less than the batch layer: no late or conflicting events told apart, one reading instead of three, no expected
speed states, no alerts, no manifest; their results go to files.
"""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import polars as pl
from confluent_kafka import TopicPartition
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import Window as Over
from pyspark.sql import functions as F  # noqa: N812 - the name that Spark's users know

from infra import kafka
from infra.settings import Settings
from metrics.by_value import Distinct, Quantile, Top
from metrics.catalog import Catalog, Metric
from metrics.event import FIELD_PREFIX
from metrics.over_time import Level
from metrics.totals import Count, Mean, Sum
from metrics.window import AnyWindow, SlidingWindow, TumblingWindow, milliseconds

_SPARK_TYPES = {"string": "string", "int": "bigint", "float": "double", "bool": "boolean"}
_POLARS_TYPES = {"string": pl.String(), "int": pl.Int64(), "float": pl.Float64(), "bool": pl.Boolean()}
_STEP = 20_000
_WAIT_S = 30.0


def plain_job(session: SparkSession, settings: Settings, catalog: Catalog, results: Path) -> None:
    """Spark's Kafka source, `from_json`, `dropDuplicates`, one `groupBy` per metric and window."""
    kinds = _SPARK_TYPES | {"decimal": "string"}
    fields = ", ".join(f"`{field.name}` {kinds[field.type]}" for field in catalog.fields.values())
    schema = f"`{catalog.event_id}` string, `{catalog.event_time_field}` bigint, {fields}"
    log = (
        session.read.format("kafka")
        .option("kafka.bootstrap.servers", settings.bootstrap)
        .option("subscribe", catalog.topic)
        .option("startingOffsets", "earliest")
        .option("endingOffsets", "latest")
        .load()
    )
    parsed = log.select(F.from_json(F.col("value").cast("string"), schema).alias("e")).select("e.*")
    required = [field.name for field in catalog.fields.values() if field.required]
    events = parsed.dropna(subset=[catalog.event_id, catalog.event_time_field, *required])
    events = events.dropDuplicates([catalog.event_id, catalog.event_time_field])
    columns = {"event_time": F.timestamp_millis(catalog.event_time_field)}
    for field in catalog.fields.values():
        value = F.col(field.name)
        value = value.cast(f"decimal(38,{field.scale})") if field.type == "decimal" else value
        columns[FIELD_PREFIX + field.name] = value if field.default is None else F.coalesce(value, F.lit(field.default))
    typed = events.select(*(value.alias(name) for name, value in columns.items())).persist()
    for metric in catalog.metrics:
        chosen = typed if metric.condition is None else typed.filter(metric.condition.spark_holds)
        for window in metric.windows:
            of_window(metric, window, chosen, catalog).write.parquet(
                str(results / f"{metric.name}_{window.grain}.parquet")
            )
    typed.unpersist()


def of_window(metric: Metric, window: AnyWindow, events: DataFrame, catalog: Catalog) -> DataFrame:
    """A metric's values in one window, by Spark."""
    by: list[Column] = [F.col(FIELD_PREFIX + name) for name in metric.by]
    if metric.session:
        by = [F.session_window("event_time", _span(metric.session.gap)), F.col(f"{FIELD_PREFIX}{catalog.key}"), *by]
    elif isinstance(window, SlidingWindow):
        by.append(F.window("event_time", _span(window.size), _span(window.period)))
    elif isinstance(window, TumblingWindow):
        by.append(F.window("event_time", _span(window.size)))
    arguments = [argument.spark for argument in metric.agg.arguments]
    match metric.agg:
        case Top():
            keys = [f"k{number}" for number in range(len(by))]
            named = [each.alias(key) for each, key in zip(by, keys, strict=True)]
            counts = events.groupBy(*named, F.expr(arguments[0]).alias("item")).count()
            rank = F.row_number().over(Over.partitionBy(*keys).orderBy(F.desc("count"), "item"))
            return counts.withColumn("rank", rank).filter(F.col("rank") <= metric.agg.most)
        case Level():
            level, change = arguments
            return events.groupBy(*by).agg(
                F.expr(f"max_by({level}, event_time) FILTER (WHERE {level} IS NOT NULL)").alias("level"),
                F.expr(f"sum({change})").alias("change"),
            )
    return events.groupBy(*by).agg(F.expr(_spark_aggregate(metric, arguments)).alias("value"))


def _span(duration: timedelta) -> str:
    return f"{milliseconds(duration)} milliseconds"


def _spark_aggregate(metric: Metric, arguments: list[str]) -> str:
    match metric.agg:
        case Count():
            return "count(*)"
        case Sum():
            return f"sum({arguments[0]})"
        case Mean():
            return f"avg({arguments[0]})"
        case Distinct():
            return f"count(DISTINCT {arguments[0]})"
        case Quantile():
            return f"percentile({arguments[0]}, {metric.agg.quantile})"
    msg = f"`{metric.name}` has an aggregation that the plain job does not know: {metric.agg.name}"
    raise NotImplementedError(msg)


def polars_job(settings: Settings, catalog: Catalog, results: Path) -> None:
    """`read_ndjson`, `unique`, one `group_by` per metric and window."""
    kinds = _POLARS_TYPES | {"decimal": pl.String()}
    schema = {catalog.event_id: pl.String(), catalog.event_time_field: pl.Int64()}
    schema |= {field.name: kinds[field.type] for field in catalog.fields.values()}
    parts = [pl.read_ndjson(b"\n".join(values), schema=schema) for values in batches(settings, catalog.topic)]
    required = [field.name for field in catalog.fields.values() if field.required]
    events = pl.concat(parts).drop_nulls(required).unique([catalog.event_id, catalog.event_time_field])
    columns = {"event_time": pl.from_epoch(catalog.event_time_field, "ms")}
    for field in catalog.fields.values():
        kind = pl.Decimal(38, field.scale) if field.type == "decimal" else kinds[field.type]
        value = pl.col(field.name).cast(kind)
        columns[FIELD_PREFIX + field.name] = (
            value if field.default is None else value.fill_null(pl.lit(field.default).cast(kind))
        )
    typed = events.select(**columns).sort("event_time")
    for metric in catalog.metrics:
        chosen = typed if metric.condition is None else typed.filter(metric.condition.holds)
        for window in metric.windows:
            found = _by_polars(metric, window, chosen, catalog)
            found.write_parquet(results / f"{metric.name}_{window.grain}.parquet")


def _by_polars(metric: Metric, window: AnyWindow, events: pl.DataFrame, catalog: Catalog) -> pl.DataFrame:
    """A metric's values in one window, by polars."""
    by, key = [FIELD_PREFIX + name for name in metric.by], f"{FIELD_PREFIX}{catalog.key}"
    arguments = [argument.polars.alias(f"a{number}") for number, argument in enumerate(metric.agg.arguments)]
    rows = events.select("event_time", *dict.fromkeys([*by, key]), *arguments)
    if metric.session:
        pause = pl.col("event_time").diff().over(key) > metric.session.gap
        numbered = rows.with_columns(number=pause.fill_null(value=True).cum_sum().over(key))
        return numbered.group_by(key, *by, "number").agg(pl.len())
    value = _polars_aggregate(metric).alias("value")
    if isinstance(window, SlidingWindow | TumblingWindow):
        every = window.period if isinstance(window, SlidingWindow) else window.size
        return rows.group_by_dynamic("event_time", every=every, period=window.size, group_by=by).agg(value)
    return rows.group_by(by).agg(value) if by else rows.select(value)


def _polars_aggregate(metric: Metric) -> pl.Expr:
    first = pl.col("a0")
    match metric.agg:
        case Count():
            found = pl.len()
        case Sum():
            found = first.sum()
        case Mean():
            found = first.mean()
        case Distinct():
            found = first.n_unique()
        case Quantile():
            found = first.quantile(float(metric.agg.quantile))
        case Top():
            found = first.value_counts(sort=True).head(metric.agg.most)
        case Level():
            found = pl.struct(first.drop_nulls().last().alias("level"), pl.col("a1").sum().alias("change"))
        case _:
            msg = f"`{metric.name}` has an aggregation that the polars job does not know: {metric.agg.name}"
            raise NotImplementedError(msg)
    return found


def reading(settings: Settings, catalog: Catalog) -> int:
    """Consumes the topic and does nothing with it; the records."""
    return sum(map(len, batches(settings, catalog.topic)))


def batches(settings: Settings, topic: str) -> Iterator[list[bytes]]:
    """The values of a topic, some at a time.

    Raises:
        TimeoutError: Kafka gave nothing for half a minute.
    """
    ends = {number: end for number, (_, end) in kafka.log_offsets(settings, topic).items()}
    consumer = kafka.consumer(settings, "lockstep-bench", {"auto.offset.reset": "earliest"})
    consumer.assign([TopicPartition(topic, number, 0) for number in ends])
    left = sum(ends.values())
    while left:
        messages = consumer.consume(min(_STEP, left), _WAIT_S)
        if not messages:
            msg = f"Kafka gave nothing for {_WAIT_S:g} s; {left:,} records are left"
            raise TimeoutError(msg)
        yield [message.value() for message in messages]
        left -= len(messages)
    consumer.close()
