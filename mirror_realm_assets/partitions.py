"""The two dynamic partition sets.

What belongs here: their definitions. What does not: the grammar of batch keys (`catalog.forming`), and adding keys
(`sensors`).

A partition of `media_batch` is one immutable batch of files, never a file: Dagster recommends at most 100,000 keys, and
its UI and automation suffer from about 10,000. All per-file assets share this one set, so that mapping between them is
the identity.
"""

import dagster as dg

media_batch = dg.DynamicPartitionsDefinition(name="media_batch")
data_source = dg.DynamicPartitionsDefinition(name="data_source")
