"""Bar charts as data, for both reports; ``templates/chart.svg`` draws them.

Labels are text and colours are the page's variables, so that both follow its dark mode.
"""

from __future__ import annotations

from dataclasses import dataclass

#: More bars than these have no room for texts above them, more slots none for texts in a line.
_MOST_TEXTS, _MOST_LEVEL = 16, 10


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        height: share of the plot's height.
        colour: variable of the stylesheet.
        text: text above the bar.
        name: what the bar stands for, shown when it is pointed at.
        hollow: whether only the outline is drawn.
        crossed: whether the bar is marked as failed.
    """

    height: float
    colour: str
    text: str = ""
    name: str = ""
    hollow: bool = False
    crossed: bool = False


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A text beside an axis.

    Attributes:
        at: share of the height on the vertical axis, number of a slot's left edge on the other.
        text: what is written there.
    """

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart; its horizontal axis has a slot for each group of bars.

    Attributes:
        label: what the chart shows, for those who do not see it.
        groups: the bars of each slot, side by side.
        x_ticks: texts below the horizontal axis.
        notes: texts one line further down.
        y_ticks: texts left of the vertical axis, each with a line across the plot.
        y_title: what the vertical axis measures.
        legend: colour and name of each series.
        limit: the tolerance, on the vertical axis if there is one, else on the horizontal.
        filled: share of a slot that its bars take.
        width: width of the picture.
        floor: lower edge of the plot.
    """

    label: str
    groups: tuple[tuple[Bar, ...], ...]
    x_ticks: tuple[Tick, ...]
    notes: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    y_title: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    limit: Tick | None = None
    filled: float = 0.76
    width: int = 460
    floor: int = 244

    @property
    def left(self) -> int:
        """Left edge of the plot; the texts of the vertical axis stand before it."""
        return 80 if self.y_ticks else 26

    @property
    def right(self) -> int:
        """Right edge of the plot."""
        return self.width - (8 if self.y_ticks else 26)

    @property
    def top(self) -> int:
        """Upper edge of the plot; the text of the tolerance stands above it."""
        return 30 if self.limit else 10

    @property
    def texts_above(self) -> bool:
        """Whether there is room for the bars' texts."""
        return not self.y_ticks or sum(map(len, self.groups)) <= _MOST_TEXTS

    @property
    def slanted(self) -> bool:
        """Whether the texts below the axis have to be slanted."""
        return bool(self.y_ticks) and len(self.groups) > _MOST_LEVEL

    def x(self, slot: float) -> float:
        """Return a horizontal place in pixels."""
        share = slot / max(len(self.groups), 1)
        return round(self.left + share * (self.right - self.left), 1)

    def y(self, share: float) -> float:
        """Return a vertical place in pixels."""
        return round(self.floor - share * (self.floor - self.top), 1)

    def edges(self, slot: int, index: int) -> tuple[float, float]:
        """Return the left and right edge of a slot's bar in pixels."""
        bars = len(self.groups[slot])
        # A lone bar beside empty space is no wider than one of two.
        step = self.filled / max(bars, 2 if self.y_ticks else 1)
        left = slot + (1 - step * bars) / 2 + step * (index + 0.03)
        return self.x(left), self.x(left + step * 0.94)
