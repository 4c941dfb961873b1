"""Searching by vectors: index segments, building and publishing them, and queries.

What belongs here: what is done with vectors once they are recorded. What does not: making them (`understand`), keeping
them (`store.shards`), and which of them are indexed (`catalog.index`).
"""
