"""A bill of materials of an image: its Python and Debian packages as CycloneDX JSON."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from flashkit.images.layers import Contents, Package, packages


def bill_of_materials(contents: Contents, *, reference: str, image_id: str) -> dict[str, Any]:
    """Return a CycloneDX 1.5 document; the same image gives the same document."""
    components = [_component(package) for package in sorted(set(packages(contents)))]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": reference, "version": image_id}},
        "components": components,
    }


def _component(package: Package) -> dict[str, Any]:
    namespace = "debian/" if package.kind == "deb" else ""
    return {
        "type": "library",
        "name": package.name,
        "version": package.version,
        "purl": f"pkg:{package.kind}/{namespace}{quote(package.name)}@{quote(package.version)}",
        **({"evidence": {"occurrences": [{"location": f"/{package.place}"}]}} if package.place else {}),
    }
