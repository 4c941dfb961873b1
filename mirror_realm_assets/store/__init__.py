"""The content-addressed store: bytes under names made of digests, in one small interface with a local form.

What belongs here: keys, atomic publishing, verified reading, trash and garbage collection. What does not: which object
belongs to which file (`catalog`), and what the bytes mean (the domain packages). Nothing here imports the catalog: what
it knows comes in through the protocols `writing.Intents`, `gc.References` and `gc.Lease`.
"""

from mirror_realm_assets.store.interface import Entry, Store, StoredObject, Swept
from mirror_realm_assets.store.opening import open_store
from mirror_realm_assets.store.writing import Writer

__all__ = ["Entry", "Store", "StoredObject", "Swept", "Writer", "open_store"]
