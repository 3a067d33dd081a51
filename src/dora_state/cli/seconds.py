"""The type of options that are a time: a range cannot tell that NaN and infinity are none."""

from __future__ import annotations

import math
from typing import Any

import click

WEEK_S = 7 * 24 * 3600


class Seconds(click.FloatRange):
    """A time from 0 up, or above 0 with `min_open`."""

    def __init__(self, max: float | None = None, min_open: bool = False) -> None:
        super().__init__(min=0, max=max, min_open=min_open)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return seconds
