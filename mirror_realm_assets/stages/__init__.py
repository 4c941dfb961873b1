"""The unit of work: what a stage is, and the engine that runs one over a batch.

What belongs here: the `Stage` type, the streaming engine with its leases, crash counting and recording, and the
worker's heartbeat. What does not: any particular stage (they live in `ingest`, `enhance`, `understand`) and Dagster.
"""
