"""Bar charts as data, for both reports; ``templates/chart.svg`` draws them.

Labels are text and colours are the page's variables, so that both follow its dark mode.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar.

    Attributes:
        at: left edge, counted in slots of the horizontal axis.
        width: width in slots.
        height: share of the plot's height.
        colour: variable of the stylesheet.
        text: text above the bar.
        name: what the bar stands for, shown when it is pointed at.
        hollow: whether only the outline is drawn.
        crossed: whether the bar is marked as failed.
    """

    at: float
    width: float
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
        at: place in slots on the horizontal axis, share of the height on the vertical one.
        text: what is written there.
    """

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One chart.

    Attributes:
        label: what the chart shows, for those who do not see it.
        slots: length of the horizontal axis.
        bars: all bars, in the order of drawing.
        x_ticks: texts below the horizontal axis.
        notes: texts one line further down.
        y_ticks: texts left of the vertical axis, each with a line across the plot.
        y_title: what the vertical axis measures.
        legend: colour and name of each series.
        limit: the tolerance; its place is a share of the height if there is a vertical axis, else
            slots.
        width: width of the picture.
        floor: lower edge of the plot.
    """

    label: str
    slots: int
    bars: tuple[Bar, ...]
    x_ticks: tuple[Tick, ...]
    notes: tuple[Tick, ...] = ()
    y_ticks: tuple[Tick, ...] = ()
    y_title: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    limit: Tick | None = None
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
    def crowded(self) -> bool:
        """Whether the texts below the axis have to be slanted."""
        return bool(self.y_ticks) and len(self.x_ticks) > 10

    def x(self, slot: float) -> float:
        """Return a horizontal place in pixels."""
        return round(self.left + slot / self.slots * (self.right - self.left), 1)

    def y(self, share: float) -> float:
        """Return a vertical place in pixels."""
        return round(self.floor - share * (self.floor - self.top), 1)
