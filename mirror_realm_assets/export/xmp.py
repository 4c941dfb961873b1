"""A sidecar beside an exported picture: what the original's sidecars said, as XMP.

What belongs here: merging what several sidecars say, and writing it. What does not: reading sidecars
(`ingest.sidecars`), which understands every value that is written here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree as ET

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": _RDF,
    "dc": "http://purl.org/dc/elements/1.1/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "photoshop": "http://ns.adobe.com/photoshop/1.0/",
}
for _prefix, _uri in _NAMESPACES.items():
    ET.register_namespace(_prefix, _uri)
# What XML 1.0 cannot hold, however it is escaped.
_UNWRITABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_RANK = {"xmp": 0, "takeout": 1}  # an XMP sidecar is a person's; Google's is an export of theirs
_WRITTEN = ("title", "description", "keywords", "rating", "taken_at")
_PLACE = ("latitude", "longitude")


def merged(said: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any] | None:
    """What sidecars say together, or None when that is nothing that can be written.

    Args:
        said: kind and values of each; the first one counts, XMP before Google's.
    """
    found: dict[str, Any] = {}
    for _kind, values in sorted(said, key=lambda each: _RANK.get(each[0], len(_RANK))):
        for name in _WRITTEN:
            if name in values:
                found.setdefault(name, values[name])
        if not found.keys() & set(_PLACE) and all(name in values for name in _PLACE):
            found.update({name: values[name] for name in _PLACE})
    return found or None


def packet(values: Mapping[str, Any]) -> bytes:
    """An XMP packet; the same values give the same bytes.

    Args:
        values: as `merged` gives them.
    """
    root = ET.Element(_name("x:xmpmeta"))
    about = ET.SubElement(ET.SubElement(root, _name("rdf:RDF")), _name("rdf:Description"))
    about.set(_name("rdf:about"), "")
    for name, tag in (("title", "dc:title"), ("description", "dc:description")):
        if name in values:
            item = _list(about, tag, "rdf:Alt", [values[name]])
            item.set("{http://www.w3.org/XML/1998/namespace}lang", "x-default")
    if values.get("keywords"):
        _list(about, "dc:subject", "rdf:Bag", values["keywords"])
    for tag, text in _plain(values).items():
        ET.SubElement(about, _name(tag)).text = _text(text)
    ET.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="utf-8") + b"\n"


def _plain(values: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    if "rating" in values:
        found["xmp:Rating"] = str(values["rating"])
    if "taken_at" in values:
        found["exif:DateTimeOriginal"] = found["photoshop:DateCreated"] = str(values["taken_at"])
    if all(name in values for name in _PLACE):
        found["exif:GPSLatitude"] = _degrees(values["latitude"], "NS")
        found["exif:GPSLongitude"] = _degrees(values["longitude"], "EW")
    return found


def _degrees(value: float, signs: str) -> str:
    """Degrees and minutes, as XMP has them; eight digits of a minute are a thousandth of a millimetre."""
    units = round(abs(value) * 60 * 10**8)
    degrees, rest = divmod(units, 60 * 10**8)
    return f"{degrees},{rest // 10**8}.{rest % 10**8:08d}{signs[value < 0]}"


def _list(about: ET.Element, tag: str, form: str, texts: Iterable[str]) -> ET.Element:
    """A property with several values; the last one's element."""
    holder = ET.SubElement(ET.SubElement(about, _name(tag)), _name(form))
    item = holder
    for text in texts:
        item = ET.SubElement(holder, _name("rdf:li"))
        item.text = _text(text)
    return item


def _text(value: object) -> str:
    return _UNWRITABLE.sub("\ufffd", str(value))


def _name(short: str) -> str:
    prefix, _colon, name = short.partition(":")
    return f"{{{_NAMESPACES[prefix]}}}{name}"
