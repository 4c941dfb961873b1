"""The maintenance job and its schedule.

What belongs here: what is done once a day. What does not: what it does (`retention`), and partition keys, which a
sensor looks after every minute (`sensors.prune`).
"""

import dagster as dg

from mirror_realm_assets.resources.library import LibraryResource
from mirror_realm_assets.retention import clean


@dg.op(
    description="Deletes runs that nothing depends on any more, what the ledger knows of workers long "
    "ended, and old months of the audit trail; creates its next months."
)
def clean_up(context: dg.OpExecutionContext, library: LibraryResource) -> None:
    """See `retention.clean`."""
    settings = library.settings
    found = clean(
        context.instance,
        library.services.catalog,
        settings,
        on_progress=lambda so_far: context.log.info(f"{so_far.runs} runs deleted so far"),
    )
    more = " The time was up; tomorrow it goes on." if found.over else ""
    rows = f"{found.workers} rows of workers and {found.activities} of the audit trail"
    context.log.info(f"{found.runs} runs, {rows} deleted.{more}")


@dg.job(
    description="Keeps Dagster's database small: deletes runs older than MIRROR_REALM_RUN_RETENTION_DAYS whose batch "
    "is retired or which a later run has superseded, with their events and logs.",
    executor_def=dg.in_process_executor,
    tags={"mirror-realm/lane": "maintenance", "dagster/priority": "-200"},
)
def maintenance_job() -> None:
    """One step."""
    clean_up()


maintenance_schedule = dg.ScheduleDefinition(
    name="maintenance_schedule",
    job=maintenance_job,
    cron_schedule="23 3 * * *",  # at night, and not at the full hour, when everybody's jobs start
    default_status=dg.DefaultScheduleStatus.RUNNING,
    tags={"mirror-realm/lane": "maintenance", "mirror-realm/by": "schedule"},
)
