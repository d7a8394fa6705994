"""What all HTML pages share: how templates are filled, and pictures inside the page.

Autoescape is on and an undefined name is an error, so that no page can forget either. `templates/head.html` holds the
content policy, which forbids scripts and every load from elsewhere, and the styles.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def fill_page(template: str, filters: Mapping[str, Any], **context: Any) -> str:
    """A template of the package, filled."""
    environment = Environment(
        loader=PackageLoader("qconvert_reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters, image=data_uri)
    return environment.get_template(template).render(**context)


def data_uri(svg: str) -> str:
    """An SVG as the source of an <img>: no script in it can run and its ids cannot meet those of another plot."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode("utf-8")).decode("ascii")
