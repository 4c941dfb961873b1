"""From files in folders to identified originals and proxies: scanning, watching, batching, reading and decoding.

What belongs here: everything between a path in a source and the facts, digest and proxy that the ledger records of it.
What does not: recording them (`catalog`), keeping bytes (`store`), using the pictures (`enhance`, `understand`).
Importing this package imports none of its modules.
"""
