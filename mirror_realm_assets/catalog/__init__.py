"""The ledger: which file, which feature, which batch, which worker, in one SQL schema.

What belongs here: tables, migrations, named query functions (`sources`, `files`, `batches`, ...) and the pure rules
over their rows (`wants`, `forming`, `policy`). What does not: reading files, running models, Dagster. No function here
keeps a connection open across anything slower than SQL.
"""
