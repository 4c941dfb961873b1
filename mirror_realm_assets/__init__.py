"""Mirror Realm (镜界): folders become enhanced, searchable media through Dagster software-defined assets.

Importing this package has no side effects: it opens no file, no database and no socket.
"""
