"""The statistics of the study: means over seeds, paired differences, slopes, each with a 95 % interval, and a verdict.

One rule for every claim, fixed before the runs: a claim is `confirmed` if the 95 % interval (Student's t) of its figure lies
wholly on the claimed side of zero, `reversed` if it lies wholly on the other side, `not seen` otherwise, and `not run yet`
where fewer than three seeds are there. Intervals are over seeds: of initial values, order, captions and views of a text
tower, in whole recipes of everything; test pictures are the same for all. A slope is taken for each seed, and then its mean:
in one fit of all points a curve would pass for noise. Claim g alone compares settings, and its interval is over them.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import scipy.stats

CONFIRMED, NOT_SEEN, REVERSED, NOT_RUN = "confirmed", "not seen", "reversed", "not run yet"


@dataclasses.dataclass(frozen=True)
class Interval:
    """A figure, and the half width of its 95 % interval (infinite where it cannot be said)."""

    value: float
    half_width: float
    count: int

    def text(self, scale: float = 1.0, digits: int = 1, sign: bool = False) -> str:
        """`54.1 ± 0.8`."""
        form = f"{'+' if sign else ''}.{digits}f"
        if not math.isfinite(self.half_width):
            return format(scale * self.value, form)
        return f"{scale * self.value:{form}} ± {scale * self.half_width:.{digits}f}"

    def verdict(self, claimed_sign: int) -> str:
        """One of the words above; claimed_sign: +1 if the claim says that the figure is positive, -1 negative."""
        if not math.isfinite(self.half_width):
            return NOT_RUN
        if abs(self.value) <= self.half_width:
            return NOT_SEEN
        return CONFIRMED if self.value * claimed_sign > 0 else REVERSED


def mean(values: Sequence[float]) -> Interval:
    """The mean and Student's interval; of fewer than three values the half width is infinite."""
    values = np.asarray(values, np.float64)
    if len(values) < 3:
        return Interval(float(values.mean()) if len(values) else math.nan, math.inf, len(values))
    error = values.std(ddof=1) / math.sqrt(len(values))
    return Interval(
        float(values.mean()), float(scipy.stats.t.ppf(0.975, len(values) - 1) * error), len(values)
    )


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The least-squares slope of y on x."""
    return float(scipy.stats.linregress(np.asarray(x, np.float64), np.asarray(y, np.float64)).slope)


def trend(x: Sequence[float], y: Sequence[float]) -> Interval:
    """The slope of y on x with Student's interval over the points; infinite without three different x or four points."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(set(x.tolist())) < 3 or len(x) < 4:
        return Interval(math.nan, math.inf, len(x))
    fitted = scipy.stats.linregress(x, y)
    return Interval(float(fitted.slope), float(scipy.stats.t.ppf(0.975, len(x) - 2) * fitted.stderr), len(x))
