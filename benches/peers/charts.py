"""Results as a file that programs read, and as charts.

Must hold: the same results give the same bytes, so that a difference in the tree is a difference of results. A chart is drawn only of what was
measured.
"""

import json
import re
import statistics

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams |= {
    "svg.hashsalt": "runs-gateway", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True, "legend.frameon": False, "figure.constrained_layout.use": True,
}
from matplotlib import pyplot  # noqa: E402, only once its backend is chosen

COLOURS = {"gateway": "#1f77b4", "envoy": "#9467bd", "nginx": "#2ca02c", "bare": "#ff7f0e", "direct": "#7f7f7f"}
BEGIN, END = "<!-- benches/peers/run --docs: begin -->", "<!-- end -->"


def write(results, folder):
    """Writes `results.json` and the charts into `folder`; the names of the charts that were drawn, with their titles."""
    folder.mkdir(exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    works = {work["name"]: work for work in results["works"]}
    drawn = {}
    for name, title, draw in (
        ("cpu-per-call", "CPU per call", lambda axes: bars(axes, works, CALLS)), ("cpu-per-event", "CPU per event", lambda axes: bars(axes, works, EVENTS)),
        ("latency", "Latency, while connections are renewed and files change", lambda axes: latency(axes, results["latency"])),
        ("size", "CPU of a GetRun by the size of its run", lambda axes: sizes(axes, works)),
    ):
        (folder / f"{name}.svg").unlink(missing_ok=True)
        figure, axes = pyplot.subplots(figsize=(8, 4))
        if draw(axes):
            axes.set_title(title)
            axes.legend()
            # Without the date, which would differ.
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
            drawn[name] = title
        pyplot.close(figure)
    return drawn


def publish(results, table, docs):
    """Puts the table and the charts into the documentation, in place of those that were there."""
    drawn = write(results, docs / "performance")
    images = [f"![{title}](performance/{name}.svg)\n" for name, title in drawn.items()]
    about = f"{results['machine']}; medians of {results['rounds']} rounds, of 3 and of 1 where more tell no more ([results.json](performance/results.json)).\n"
    page = docs / "performance.md"
    block = "\n".join([BEGIN, "", about, *table, "", *images, END])
    text, number = re.subn(re.escape(BEGIN) + ".*?" + re.escape(END), lambda _: block, page.read_text(), flags=re.DOTALL)
    if number != 1:
        raise SystemExit(f"charts: {page} has no one place for the table, between {BEGIN} and {END}")
    page.write_text(text)


CALLS = {
    f"{method}-{rate}": f"{method}\n" + (f"{int(rate):,}/s" if rate != "most" else "saturated") for method in ("GetRun", "CreateRun") for rate in ("most", "2000", "8000")
}
EVENTS = {"events-bulk": "in 16 KiB chunks", "events-single": "one by one"}


def bars(axes, works, titles):
    """A group of bars for each work, a bar for each side."""
    found = {name: title for name, title in titles.items() if name in works}
    values = {name: {"gateway": works[name]["measured"], **works[name]["beside"]} for name in found}
    shown = [side for side in COLOURS if any(side in measured for measured in values.values())]
    width = 0.8 / max(1, len(shown))
    for at, side in enumerate(shown):
        groups = [(group, statistics.median(values[name][side])) for group, name in enumerate(found) if side in values[name]]
        places = [group + (at - (len(shown) - 1) / 2) * width for group, _ in groups]
        drawn = axes.bar(places, [value for _, value in groups], width, label=side, color=COLOURS[side])
        axes.bar_label(drawn, fmt="{:.3g}", fontsize=7)
    axes.set_xticks(range(len(found)), found.values())
    axes.set_ylabel("µs")
    return found


def latency(axes, measured):
    """How long calls take, by the part of calls that take no longer: the rarer, the farther to the right, by the power of ten."""
    lines = {(each["rate"], each["side"]): each["rounds"] for each in measured}
    for (rate, side), rounds in sorted(lines.items()):
        parts = [part for part in rounds[0] if part != "p100"]
        rare = [1 / (1 - float(part[1:]) / 100) for part in parts]
        times = [statistics.median(each[part] for each in rounds) for part in parts]
        axes.plot(rare, times, label=f"{side}, {rate:,}/s", color=COLOURS[side], linestyle="-" if rate == min(lines)[0] else "--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = ("50", "90", "99", "99.9", "99.99")
    axes.set_xticks([1 / (1 - float(part) / 100) for part in ticks], [f"p{part}" for part in ticks])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_ylabel("ms")
    return lines


def sizes(axes, works):
    """CPU per call against the size of what is read."""
    found = {int(name.removeprefix("size-")): work for name, work in works.items() if re.fullmatch(r"size-\d+", name)}
    for side in ("gateway", "nginx"):
        of = lambda work, side=side: work["measured"] if side == "gateway" else work["beside"].get(side, [])
        points = [(size / 1000, statistics.median(of(work))) for size, work in sorted(found.items()) if of(work)]
        if points:
            axes.plot(*zip(*points), marker="o", label=side, color=COLOURS[side])
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
    axes.set_xlabel("kB of JSON")
    axes.set_ylabel("µs")
    return found
