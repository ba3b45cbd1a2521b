"""What every page of the report's room is made with: its templates, its style and script, and how figures are written.

A page is one file without a network: style and script stand in it, and its policy names them by their hashes, so that
nothing else can run, whatever the texts in it hold. It reads as well where scripts are off; they add sorting and the
explorer.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from saywhy.report import story

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
UNDEFINED = Markup('<abbr title="undefined">–</abbr>')


@cache
def environment() -> Environment:
    """The jinja environment that finds this room's templates, with the filters that write figures."""
    made = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(amount=amount, cut=cut, decimals=decimals, interval=interval, p=p_value, percent=percent)
    made.filters.update(points=points, seconds=seconds)
    return made


def assets() -> dict[str, Markup]:
    """The style and the script that base.html puts into a page, and the policy that lets these two run and no other."""
    style, script = _read("style.css"), _read("page.js")
    allowed = f"style-src {_hash(style)}; script-src {_hash(script)}"
    policy = f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"
    return {"style": Markup(style), "script": Markup(script), "policy": Markup(policy)}


def render(template: str, **values: object) -> str:
    """The page that a template of this room makes of the values; what no HTML may hold becomes U+FFFD."""
    made = environment().get_template(template).render(assets=assets(), undefined=UNDEFINED, **values)
    return CONTROL.sub("\ufffd", made)


def cut(text: object, length: int) -> str:
    """The text on one line, at most `length` characters, with an ellipsis where it was cut."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def percent(value: float | None) -> str:
    """A share in percent with one decimal, without the sign."""
    return f"{100 * value:.1f}" if value is not None and math.isfinite(value) else UNDEFINED


def interval(ends: Sequence[float] | None, write: Callable[[float | None], str] = percent) -> str:
    """An interval as it stands behind a figure: `[94.1, 96.8]`, in percent unless `write` writes otherwise."""
    return f"[{write(ends[0])}, {write(ends[1])}]" if ends else UNDEFINED


def decimals(value: float | None, places: int = 3) -> str:
    """A figure with so many decimals, its thousands marked."""
    return f"{value:,.{places}f}".replace("-", "−") if value is not None and math.isfinite(value) else UNDEFINED


def amount(value: float | None) -> str:
    """A whole number with its thousands marked."""
    return story.amount(value) if value is not None and math.isfinite(value) else UNDEFINED


def points(value: float | None) -> str:
    """A difference of two shares in points, with its sign."""
    return story.points(value, sign=True) if value is not None and math.isfinite(value) else UNDEFINED


def p_value(value: float | None) -> str:
    """A p value without the letter, as a table has it."""
    return story.p_value(value).removeprefix("p\u00a0").removeprefix("=\u00a0") if value is not None else UNDEFINED


def seconds(value: float | None) -> str:
    """A duration as people say it."""
    if value is None or not math.isfinite(value):
        return UNDEFINED
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _read(name: str) -> str:
    return (files("saywhy.report") / name).read_text("utf-8")


def _hash(text: str) -> str:
    """A source expression of a content security policy (CSP 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
