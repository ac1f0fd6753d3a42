"""Makes a report page: one self-contained HTML file.

It comes of a Jinja template, its script, its data and how it prints figures. The page may load
nothing from elsewhere, and its content security policy allows its own script alone. Texts enter it
escaped, or as JSON that the script puts into the page as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from grm_jax.whole_files import write_whole

BROWSER = "report_browser.js.jinja"


def render(template: str, **values: Any) -> str:
    """Renders the page of a template in this folder.

    The template also gets `script` and, for its content security policy, `script_hash`.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("grm_jax", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "duration": _duration,
        "figure": _figure,
    }
    script = environment.loader.get_source(environment, BROWSER)[0]
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        script=Markup(script), script_hash=script_hash, **values
    )


def write(path: Path, text: str) -> Path:
    """Writes the file, whole or not at all, and returns its path."""
    write_whole(path, text.encode("utf-8", "replace"))  # a path may be no text
    return path


def _percent(value: float | None, digits: int = 1) -> str:
    return "n/a" if value is None else f"{100 * value:.{digits}f}"


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return (
        f"{seconds:.0f} s"
        if minutes < 2
        else f"{minutes:.1f} min"
        if hours < 2
        else f"{hours:.1f} h"
    )


def _figure(value: float) -> str:
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def script_json(value: Any) -> Markup:
    """Writes JSON that cannot end the script element it stands in, whatever the texts hold."""
    text = json.dumps(value, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
