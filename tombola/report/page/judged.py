"""An audit on a page: how the ticket stands to each arm, and which part of it matters."""

from __future__ import annotations

from collections.abc import Callable

from tombola.audits.verdict import ArmJudged, Verdict
from tombola.report.audit_figures import accuracy_panel, speed_panel
from tombola.report.audited import p_shown
from tombola.report.page.charts import Chart, chart
from tombola.report.page.tables import Cell, Table, count, number
from tombola.report.tables import is_share, metric_name, of_metric

HEADING = "Beside each arm"


def charts(verdict: Verdict, of: str) -> list[Chart]:
    """By how much the ticket is ahead of each arm, in the metric and in speed."""
    drawn = {"audit-metric": accuracy_panel(verdict), "audit-speed": speed_panel(verdict)}
    return [chart(name, figure, title=str(figure.title.text), of=of, fixed=True) for name, figure in drawn.items()]


def arms(verdict: Verdict) -> Table:
    """The ticket and each arm, with means over seeds and what the comparison has shown."""
    share, name = is_share(verdict.metric), metric_name(verdict.metric)
    form, apart = of_metric(verdict.metric), _apart(share)
    unit = " %" if share else ""
    header = (
        *("arm", "role", f"{name}{unit}", "ahead by", "95 % from", "to", "lowest seed", "highest seed", "p", "shown"),
        *("early-stop step", "sooner by", "speed shown"),
    )
    first = verdict.arms[0]
    blank = Cell("", "", "")
    ours, steps = first.accuracy.compared.our_mean, first.speed.compared.our_mean
    own = (Cell("ticket"), Cell("ticket"), number(ours, form), *[blank] * 6, Cell(""), number(steps, count))
    lines = [(*own, blank, Cell(""))]
    lines += [_line(one, form, apart) for one in verdict.arms]
    caption = (
        f"The ticket beside each arm, over {len(first.accuracy.compared.seeds)} seeds. Differences are the ticket's "
        "minus the arm's, + where the ticket is better. p of controls is corrected for their number."
    )
    numeric = frozenset({*range(2, 9), 10, 11})
    return Table("audit-arms", caption, header, tuple(lines), numeric, frozenset({0}))


def _line(one: ArmJudged, form: Callable[[float], str], apart: Callable[[float], str]) -> tuple[Cell, ...]:
    accuracy, speed = one.accuracy.compared, one.speed.compared
    between = accuracy.interval
    values = (between.mean, between.low, between.high, between.lowest, between.highest)
    return (
        *(Cell(one.arm), Cell(one.role), number(accuracy.their_mean, form)),
        *(number(value, apart) for value in values),
        *(number(p_shown(one.accuracy), lambda p: f"{p:.3f}" if p >= 0.001 else "< 0.001"), Cell(one.accuracy.outcome)),
        *(number(speed.their_mean, count), number(speed.interval.mean, lambda v: f"{v:+,.0f}")),
        Cell(one.speed.outcome),
    )


def parts(verdict: Verdict) -> Table:
    """Which part of the ticket matters: what is lost when it alone is destroyed."""
    apart = _apart(is_share(verdict.metric))
    lines = tuple(
        (
            *(Cell(one.part), Cell(one.kept), Cell(one.destroyed)),
            *(
                number(value, apart)
                for value in (
                    one.judged.compared.interval.mean,
                    one.judged.compared.interval.lowest,
                    one.judged.compared.interval.highest,
                )
            ),
            *(number(p_shown(one.judged), lambda p: f"{p:.3f}" if p >= 0.001 else "< 0.001"), Cell(one.matter)),
        )
        for one in verdict.blame
    )
    header = ("part", "kept in", "destroyed in", "lost", "lowest seed", "highest seed", "p", "so it")
    return Table("audit-parts", "Which part of the ticket matters.", header, lines, frozenset({3, 4, 5, 6}))


def _apart(share: bool) -> Callable[[float], str]:
    return (lambda v: f"{100 * v:+.2f}") if share else (lambda v: f"{v:+.3g}")
