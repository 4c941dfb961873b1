"""What is installed, found and missing on this machine, and how to mend it.

What belongs here: looking, and one sentence with a remedy for each thing looked at. What does not: mending; nothing is
created, fetched or changed, and neither a model nor torch nor Dagster is loaded, so that it takes a second or two.
Versions come from package metadata; what Dagster knows is asked of its webserver, where one runs.
"""

from mirror_realm_assets.doctor.examination import examine
from mirror_realm_assets.doctor.ledger import open_catalog
from mirror_realm_assets.doctor.verdict import Finding

__all__ = ["Finding", "examine", "open_catalog"]
