"""Figures of a study: its first axis in colours, the other axes side by side, the seeds as bands from lowest to highest."""

from __future__ import annotations

import io
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from registry.show.figures import drawing
from registry.study.cells import Status
from registry.study.statistics import band
from registry.study.summary import Group, Summary, TeacherRows, named, teacher_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Theme:
    """Colours on a light or a dark page."""

    ink: str
    faint: str
    lines: tuple[str, ...]


LIGHT = Theme("#22303c", "#c9d1d6", ("#c8553d", "#2a7f9e", "#d19a2a", "#5f8f4e", "#8d5a97", "#22303c", "#9b6b43", "#7d8a94"))
DARK = Theme("#dde4e8", "#46535d", ("#ea7d63", "#5fb6d8", "#e6bb55", "#8fc37e", "#c493d0", "#dde4e8", "#cf9f76", "#94a1ab"))
BESIDE = ("teacher", "real")
AXIS_LABELS = {"kimg": "thousands of images (kimg)", "seconds": "seconds of training"}


@dataclass(frozen=True)
class Layout:
    """Which axis of the study is drawn in colours, and which combinations of the others have a panel each."""

    lines: tuple[int, tuple[str, ...]] | None
    """Position and variants of the axis in colours; None without axes."""
    others: tuple[int, ...]
    panels: tuple[tuple[str, ...], ...]

    def groups(self, summary: Summary, panel: tuple[str, ...], line: str | None) -> list[Group]:
        """The groups of one line in one panel."""
        return [
            g
            for g in summary.groups
            if all(g.labels[i] == label for i, label in zip(self.others, panel, strict=True))
            and (self.lines is None or g.labels[self.lines[0]] == line)
        ]


def layout(summary: Summary, without: int | None = None) -> Layout:
    """The layout of all axes, or of all but one that is on the x axis."""
    kept = [i for i in range(len(summary.axes)) if i != without]
    first, others = (kept[0] if kept else None), tuple(kept[1:])
    panels = tuple(itertools.product(*(summary.axes[i][1] for i in others)))
    return Layout(None if first is None else (first, summary.axes[first][1]), others, panels)


@drawing()
def figures(summary: Summary, theme: Theme) -> dict[str, Figure]:
    """All figures by name: every metric over kimg, over time, and over evaluations. Raises UserError without matplotlib."""
    found: dict[str, Figure | None] = {}
    for column in summary.columns:
        for over, name in (("kimg", "kimg"), ("seconds", "time")):
            found[f"{column}-{name}"] = draw_training(summary, column, over, theme)
        found[f"{column}-evaluations"] = draw_evaluations(summary, column, theme)
    return {name: figure for name, figure in found.items() if figure is not None}


def draw_training(summary: Summary, column: str, over: str, theme: Theme) -> Figure | None:
    """A metric over the course of the runs: mean and range over the seeds."""
    if not summary.trained:
        return None  # teachers are not trained here
    plan = layout(summary)
    bands: dict[tuple[tuple[str, ...], str | None], Any] = {}
    for panel, line in itertools.product(plan.panels, plan.lines[1] if plan.lines else (None,)):
        done = [r for g in plan.groups(summary, panel, line) for r in g.results if r.status is Status.DONE]
        points = band([r.curve(column, over) for r in done])
        if points:
            bands[panel, line] = points
    if not any(len(points) > 1 for points in bands.values()):
        return None
    figure, axes = new_figure(summary, plan, theme)
    for (panel, line), points in bands.items():
        ax, color = axes[plan.panels.index(panel)], color_of(plan, line, theme)
        x, low, mean, high = zip(*points, strict=True)
        ax.plot(
            x,
            mean,
            color=color,
            linewidth=1.6,
            marker="o" if len(x) < 30 else None,
            markersize=3,
            label=name_of(summary, plan, line),
        )
        ax.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
    for ax, panel in zip(axes, plan.panels, strict=True):
        ax.set_xlabel(AXIS_LABELS[over], color=theme.ink, fontsize=9)
        if not any(of == panel for of, _ in bands):
            text = "nothing that all seeds\nhave in common"
            ax.text(0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, fontsize=8.5, color=theme.ink)
    finish(figure, axes, column, theme, all(p[1] > 0 for points in bands.values() for p in points))
    return figure


def draw_evaluations(summary: Summary, column: str, theme: Theme) -> Figure | None:
    """A metric over network evaluations per image: mean and range over the seeds; teachers dashed; the floor as a line."""
    along = evaluations_axis(summary)
    plan = layout(summary, along)
    measured = [g for g in summary.groups if g.evaluations and g.values.get(column)]
    places = {g.evaluations for g in measured} | {row.evaluations for t in summary.teachers for row in t.rows}
    if not measured or len(places) < 2:
        return None
    figure, axes = new_figure(summary, plan, theme)
    for ax, panel in zip(axes, plan.panels, strict=True):
        drawn: set[str] = set()
        lines = plan.lines[1] if plan.lines else (None,)
        shared = len({teachers_in(plan.groups(summary, panel, line)) for line in lines}) == 1
        for i, line in enumerate(lines):
            groups = [g for g in plan.groups(summary, panel, line) if g in measured]
            color = color_of(plan, line, theme)
            draw_points(
                ax, groups, column, color, name_of(summary, plan, line), along is not None, 1.03 ** (i - (len(lines) - 1) / 2)
            )
            for teacher in summary.teachers:
                if teacher.name in teachers_in(groups) - drawn:
                    drawn.add(teacher.name)
                    draw_teacher(ax, teacher, column, theme.ink if shared else color)
        if summary.floor:
            ax.axhline(summary.floor.mean(column), color=theme.faint, linewidth=1.4, label="real against real", zorder=0)
        ticks = sorted(n for n in places if n)
        ax.set_xscale("log")
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.minorticks_off()
        ax.set_xlabel("network evaluations per image", color=theme.ink, fontsize=9)
    positive = all(v > 0 for g in measured for v in g.values[column].values())
    finish(figure, axes, column, theme, positive and (summary.floor is None or summary.floor.mean(column) > 0))
    return figure


def evaluations_axis(summary: Summary) -> int | None:
    """The axis whose variants differ in their evaluations, one number for each; it goes onto the x axis."""
    for i, (_, labels) in enumerate(summary.axes):
        counts = [{g.evaluations for g in summary.groups if g.labels[i] == label and g.evaluations} for label in labels]
        if len(labels) > 1 and all(len(c) == 1 for c in counts) and len(set.union(*counts)) == len(labels):
            return i
    return None


def teachers_in(groups: Sequence[Group]) -> frozenset[str]:
    """The names of the teachers of these groups' runs."""
    return frozenset(teacher_name(r) for g in groups for r in g.results)


def draw_points(ax: Axes, groups: Sequence[Group], column: str, color: str, label: str, connected: bool, aside: float) -> None:
    """Means with bars from lowest to highest; set aside a little, so that lines at the same place do not hide each other."""
    found = sorted((g.evaluations or 0, sorted(g.values[column].values())) for g in groups)
    if not found:
        return
    x = [n * aside for n, _ in found]
    mean = [statistics.fmean(v) for _, v in found]
    bars = [[m - v[0] for m, (_, v) in zip(mean, found, strict=True)], [v[-1] - m for m, (_, v) in zip(mean, found, strict=True)]]
    style = "-" if connected else "none"
    ax.errorbar(x, mean, bars, color=color, marker="o", markersize=4, linewidth=1.6, elinewidth=1, linestyle=style, label=label)


def draw_teacher(ax: Axes, teacher: TeacherRows, column: str, color: str) -> None:
    rows = [row for row in teacher.rows if column in row.values]
    x, y = [row.evaluations or 0 for row in rows], [row.mean(column) for row in rows]
    ax.plot(x, y, color=color, marker="s", markersize=3.5, linewidth=1.1, linestyle=(0, (4, 2)), label=f"teacher {teacher.name}")


def new_figure(summary: Summary, plan: Layout, theme: Theme) -> tuple[Figure, list[Axes]]:
    """Panels in up to four columns, in the style of the theme. Raises UserError without matplotlib."""
    from matplotlib.figure import Figure

    count = len(plan.panels)
    columns = min(count, 4 if count > 6 else 3)
    rows = math.ceil(count / columns)
    size = (7.5, 4.0) if count == 1 else (min(3.6 * columns, 12.5) + 0.6, 2.7 * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes: list[Axes] = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for ax in axes:
        ax.patch.set_visible(False)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(theme.faint)
        ax.tick_params(colors=theme.ink, labelsize=8.5, labelbottom=True)
        ax.grid(color=theme.faint, linewidth=0.5, alpha=0.6)
        ax.set_axisbelow(True)
    for ax in axes[count:]:
        ax.set_visible(False)
    for ax, panel in zip(axes, plan.panels, strict=False):
        if panel:
            ax.set_title(named([summary.axes[i][0] for i in plan.others], panel), color=theme.ink, fontsize=9.5)
    return figure, axes[:count]


def finish(figure: Figure, axes: Sequence[Axes], column: str, theme: Theme, logarithmic: bool) -> None:
    """The y axis, and one legend for all panels, if there is more than one line."""
    for i, ax in enumerate(axes):
        if logarithmic:
            ax.set_yscale("log")
            readable_ticks(ax)
        if ax.get_subplotspec().is_first_col():  # type: ignore[union-attr]
            ax.set_ylabel(column, color=theme.ink, fontsize=9)
        if i:
            continue
    labels: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    if len(labels) > 1:
        names = sorted(labels, key=lambda name: name.startswith(BESIDE))  # what the study measures comes first
        handles = [labels[name] for name in names]
        figure.legend(handles, names, loc="outside right center", fontsize=8.5, frameon=False, labelcolor=theme.ink)


def readable_ticks(ax: Axes) -> None:
    """Round numbers on a logarithmic axis, written out; the closer, the shorter the axis is."""
    from matplotlib.ticker import LogLocator

    low, high = ax.get_ylim()
    subs = (1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 5, 7) if high > 4 * low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    ax.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()


def color_of(plan: Layout, line: str | None, theme: Theme) -> str:
    position = plan.lines[1].index(line) if plan.lines and line is not None else 0
    return theme.lines[position % len(theme.lines)]


def name_of(summary: Summary, plan: Layout, line: str | None) -> str:
    """A line's name in the legend."""
    if plan.lines is None or line is None:
        return "generator"
    key = summary.axes[plan.lines[0]][0].rpartition(".")[2]
    return line if any(ch.isalpha() for ch in line) and line not in ("inf", "nan") else f"{key} = {line}"


@drawing()
def as_image(figure: Figure, kind: str) -> bytes:
    """A figure as PNG with white ground, or as SVG without one; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "distill", "svg.fonttype": "path"}):
        if kind == "svg":
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        else:
            figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
