"""What people read about the assets in the UI: descriptions in Markdown, tags, metadata of the definitions.

What belongs here: words, and links within the UI. What does not: anything that depends on a run, on a source or on what
lies on a disk; nothing here is ever built from a name.
"""

from collections.abc import Mapping

import dagster as dg

from mirror_realm_assets.assets import links
from mirror_realm_assets.stages.stage import Stage

_BATCH = """
**One partition** is one batch: a list of files that never changes, called `<source>.<UTC time>.<number>`. The time is
when the batch was formed; the number alone makes it unique.
"""
_ONCE = """
**Materializing a batch again does nothing twice.** What the ledger has recorded stays; the summary says so.
`mirror-realm retry` puts failures back, and a changed option of the source (`mirror-realm sources set`) makes new
batches of what it changes.
"""
_LOOK: Mapping[str, str] = {
    "raw_media": """
**What is in it**: one record a file (digest of its bytes, size, mime type, capture time, perceptual hash) and one
*proxy*, an upright sRGB JPEG that everything else reads; of a video one for each scene, of a document one for each of
its first pages. Originals are opened here once and are never changed.

**What to look at**: `glance` and `preview` show pictures of the batch. `refused` lists why files were not taken, with
what to do about it: a refusal is the file's fault and fails nothing. `pictures_per_second` is the speed of reading and
decoding together.
""",
    "embeddings": """
**What is in it**: one vector of length 1 for each picture, in Parquet shards of the store. Vectors of two models are
never mixed: the recipe tells them apart.

**What to look at**: `model` and `recipe` say what made the vectors, `precision` and `device` how. The check
`embeddings_are_vectors` reads every one of them back.
""",
    "enhanced_images": """
**What is in it**: one enlarged picture for each original that the source wants enhanced, in the store. It is made from
the original, not from the proxy.

**What to look at**: `preview` shows before and after side by side, `seconds_per_picture` the price. Pictures above the
source's `enhance.max_pixels` count as `not_wanted`. A run works for up to half an hour and is asked for again until its
batch is done; it waits while the search lane has work.
""",
    "archived_media": """
**What is in it**: copies of originals and enhanced pictures in the source's archive, a folder or a bucket, under names
that the source's `archive.template` makes. Only sources with the option `archive` have it.

**What to look at**: `bytes` is what was copied. Every copy was read back; a name that other bytes have already gets
digits of the file's digest. `mirror-realm file` says where a file lies in the archive.
""",
}
_SHARD_COLUMNS = dg.TableSchema(
    columns=[
        dg.TableColumn("image_digest", "string", description="of the picture's coded data, without its metadata"),
        dg.TableColumn("part", "int32", description="0 is the still picture"),
        dg.TableColumn("vector", "fixed_size_list<float16>", description="of length 1"),
    ]
)

DATA_SOURCES = """A registered folder: its state, its options, and what became of its files.

**One partition** is one source, by its name.

**What to look at**: `features` is a table of what became of every file, feature by feature; `pending` is what is still
to be done. A paused source says why in `state`. It is recorded whenever the source's index is brought up to date;
`mirror-realm status` shows the same at any moment.
"""
FAISS_INDEX = """The published search index of a source: every verified embedding, in segments that a manifest names.

**One partition** is one source, by its name.

**What to look at**: `vectors` against the embeddings of the source, `recall_at_10` (measured against exact search at
every build), `tombstones` (vectors of files that are gone and lie there until their segment is written anew). The check
`index_equals_ledger` compares the index with the ledger.

The edge from `embeddings` is for the eye: which sources need a run is asked of the ledger. **Materializing a source
again** takes in what is missing and else leaves the published version alone. The index is a cache: it can always be
built again from the shards.
"""


def of_stage(stage: Stage) -> str:
    """The description of a stage's asset: what it is, what a partition is, what to look at."""
    parts = (stage.description, _LOOK.get(stage.name, ""), _BATCH, _ONCE)
    return "\n\n".join(part.strip() for part in parts if part)


def tags(lane: str, partition: str) -> dict[str, str]:
    """Tags of an asset, to filter the catalog of assets by."""
    return {"mirror-realm/lane": lane, "mirror-realm/partition": partition}


def metadata(lane: str, feature: str | None = None) -> dict[str, dg.MetadataValue | dg.TableSchema]:
    """Metadata of an asset's definition: a link to the runs of its lane, and columns where it is a table."""
    found: dict[str, dg.MetadataValue | dg.TableSchema] = {
        "runs_of_this_lane": dg.MetadataValue.url(links.runs_by_tag("mirror-realm/lane", lane))
    }
    if feature == "embeddings":
        found["dagster/column_schema"] = _SHARD_COLUMNS
    return found
