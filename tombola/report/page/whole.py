"""A page that needs nothing but itself: sections, style, scripts and licences in one file, closed to the network."""

from __future__ import annotations

import base64
import hashlib
from functools import cache

from tombola.findings import Findings
from tombola.report.page.sections import sections
from tombola.report.page.templates import asset, render
from tombola.store import minute
from tombola.version import __version__


def page(findings: Findings) -> str:
    """The whole page as HTML, to be saved as UTF-8. It opens from disk, and its policy lets nothing be loaded."""
    from markupsafe import Markup

    scripts = [charts_library(), asset("sortable.min.js"), asset("page.js")]
    style = asset("page.css")
    parts = sections(findings)
    return render(
        "page.html.j2",
        title=findings.title,
        policy=_policy(style, scripts),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        licences=Markup(asset("licences.txt")),
        sections=[(part.id, part.heading, Markup(part.html)) for part in parts],
        made=minute(findings.made),
        version=__version__,
    )


@cache
def charts_library() -> str:
    """The libraries that draw charts: Vega, Vega-Lite and Vega-Embed with Vega's interpreter, which needs no eval."""
    import altair as alt
    import vl_convert as vlc

    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    bundle: str = vlc.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=version)
    return bundle.replace("</script", "<\\/script")


def _policy(style: str, scripts: list[str]) -> str:
    """Only these scripts and this style, by their hashes; images only from the page itself; no connection at all."""
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
