"""Links between pages of the UI, for materializations and descriptions.

What belongs here: addresses within the UI. They begin at its root and name no host: a person may reach it by any name.
"""

from urllib.parse import quote

import dagster as dg

from mirror_realm_assets.catalog.forming import KEY


def runs_by_tag(tag: str, value: str) -> str:
    """The page of runs, filtered by a run tag."""
    return f"/runs?q[0]={quote(f'tag:{tag}={value}', safe='')}"


def partition_of(asset: str, key: str) -> str:
    """An asset's page for one partition."""
    return f"/assets/{quote(asset)}?view=partitions&partition={quote(key, safe='')}"


def of_batch(key: str) -> dg.MarkdownMetadataValue | None:
    """From a batch to its runs, its source's runs and its source's index; None for a key that is none of ours."""
    source = source_of(key)
    if source is None:
        return None
    return _row(
        ("runs of this batch", runs_by_tag("dagster/partition", key)),
        (f"runs of {source}", runs_by_tag("mirror-realm/source", source)),
        (f"index of {source}", partition_of("faiss_index", source)),
    )


def of_source(name: str, other: str) -> dg.MarkdownMetadataValue:
    """From a source to its runs and to the other asset that is partitioned by sources."""
    return _row(
        (f"runs of {name}", runs_by_tag("mirror-realm/source", name)),
        (f"{other} of {name}", partition_of(other, name)),
    )


def source_of(key: str) -> str | None:
    """The source in a batch key, or None for a key of another form. Its letters need no escaping in Markdown."""
    found = KEY.fullmatch(key)
    return found["source"] if found else None


def _row(*links: tuple[str, str]) -> dg.MarkdownMetadataValue:
    return dg.MetadataValue.md(" · ".join(f"[{words}]({address})" for words, address in links))
