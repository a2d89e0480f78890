-- Job A in Flink SQL. What is read, $read, is `good`, or `good_once` where copies are dropped.
CREATE TABLE events (
  event_id STRING,
  ts BIGINT,
  event_type STRING,
  user_id STRING,
  country STRING,
  page STRING,
  amount DECIMAL(18, 2),
  record_time TIMESTAMP_LTZ(3) METADATA FROM 'timestamp',
  event_time AS TO_TIMESTAMP_LTZ(ts, 3),
  read_at AS PROCTIME(),
  WATERMARK FOR event_time AS record_time - INTERVAL '10' SECOND
) WITH (
  'connector' = 'kafka',
  'topic' = '$topic',
  'properties.bootstrap.servers' = '$bootstrap',
  'scan.startup.mode' = 'earliest-offset',
  'scan.bounded.mode' = 'latest-offset',
  'format' = 'json',
  'json.ignore-parse-errors' = 'true'
);

CREATE VIEW good AS
SELECT event_id, event_type, amount, event_time, read_at
FROM events
WHERE event_type IS NOT NULL AND record_time <= event_time + INTERVAL '1' HOUR + INTERVAL '10' SECOND;

CREATE VIEW good_once AS
SELECT event_type, amount, event_time
FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY event_id ORDER BY read_at) AS copy FROM good)
WHERE copy = 1;

CREATE TABLE counts (
  slice_start BIGINT,
  event_type STRING,
  events BIGINT,
  cents BIGINT,
  PRIMARY KEY (slice_start, event_type) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = '$results',
  'properties.bootstrap.servers' = '$bootstrap',
  'key.format' = 'json',
  'value.format' = 'json'
);

INSERT INTO counts
SELECT
  UNIX_TIMESTAMP(DATE_FORMAT(window_start, 'yyyy-MM-dd HH:mm:ss')) * 1000,
  event_type,
  COUNT(*),
  CAST(SUM(amount) * 100 AS BIGINT)
FROM TABLE(TUMBLE(TABLE $read, DESCRIPTOR(event_time), INTERVAL '10' SECOND))
GROUP BY window_start, window_end, event_type
