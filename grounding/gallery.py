"""
A run of recipes/augment.py as one HTML page: what was kept, what was rejected and why, with scores.

    OUTPUT/shards -> some of the kept, some of each reason, drawn by hash -> thumbnails with their boxes -> gallery.html

Unusual: the page needs no network and runs no script; it is told in the style of the dataset report (trainers/dataset_page.py).
"""

import heapq
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from datasets_scripts.canonical import place
from trainers.dataset_page import COLOURS, svg, thumbnail
from trainers.dataset_template import STYLE


TEMPLATE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Regions of {{ name }}</title><style>{{ style | safe }}</style></head><body>
<h1>Regions of <bdi>{{ name }}</bdi></h1>
<p class="soft">{% for what, value in told.items() if value is not none %}
{{ what }} {{ value }}{{ ", " if not loop.last }}
{% endfor %}</p>
<div class="heads">
<div><b>{{ "{:,}".format(figures.pictures.read) }}</b> pictures</div>
<div><b>{{ "{:,}".format(figures.captions) }}</b> captions</div>
<div><b>{{ "{:,}".format(figures.phrases) }}</b> phrases asked for</div>
<div><b>{{ "{:,}".format(figures.detections) }}</b> detections</div>
<div><b>{{ "{:,}".format(figures.kept) }}</b> regions kept</div>
</div>
{% if lacking %}<div class="warn"><ul>{% for line in lacking %}<li>{{ line }}</li>{% endfor %}</ul></div>{% endif %}
<h2>Scores</h2>
<div class="plots">{% for plot in plots %}{{ plot }}{% endfor %}</div>
{% for title, number, cards in sections %}
<h2>{{ title }} <small>{{ "{:,}".format(number) }}, {{ cards | length }} shown</small></h2>
<div class="sheet">
{% for card in cards %}
<figure>{% if card.shown %}<img src="{{ card.shown.url }}" width="{{ card.shown.width }}" height="{{ card.shown.height }}"
 alt="{{ card.phrase }}"{{ " class=small" if card.shown.small }}>{% else %}<div class="gone">cannot be read</div>{% endif %}
<figcaption><p><b dir="auto">{{ card.text or card.phrase }}</b>
{% if card.text and card.text != card.phrase %}<small>asked: {{ card.phrase }}</small>{% endif %}</p>
<p>detector {{ card.detector_score }}{% if card.clip_score is not none %}, similarity {{ card.clip_score }}{% endif %}</p>
<p class="soft" dir="auto">{{ card.caption }} <small><bdi>{{ card.image_id }}</bdi></small></p></figcaption></figure>
{% endfor %}
</div>
{% endfor %}
<h2>Commonest phrases kept</h2>
<p class="chips">{% for phrase, number in figures.phrases_kept.items() %}
<span dir="auto">{{ phrase }} <small>{{ number }}</small></span>
{% endfor %}</p>
</body></html>
"""


def sample(records: Iterable[dict], number: int) -> dict[str, list[dict]]:
    """Reason (empty for the kept) -> at most `number` regions, the same ones in every run, in the order of the data."""
    heaps: dict[str, list] = {}
    for order, record in enumerate(records):
        if record["kind"] != "region":
            continue
        heap = heaps.setdefault(record["reason"], [])
        key = -place(f"{record['image_id']} {record['phrase']} {record['box']}")
        (heapq.heappush if len(heap) < number else heapq.heappushpop)(heap, (key, order, record))
    return {
        reason: [record for _, record in sorted((order, record) for _, order, record in heap)]
        for reason, heap in heaps.items()
    }


def _histogram(name: str, label: str, figures: dict) -> str:
    counts = figures["histograms"][name]
    edges = np.linspace(figures["histograms"]["from"], figures["histograms"]["to"], len(counts["kept"]) + 1)
    there = np.flatnonzero(np.array(counts["kept"]) + np.array(counts["rejected"]))
    first, last = (there[0], there[-1] + 1) if len(there) else (0, len(edges) - 1)

    def draw(axis) -> None:
        for way, colour in zip(("kept", "rejected"), COLOURS[1:3], strict=True):
            axis.stairs(counts[way][first:last], edges[first : last + 1], color=colour, fill=True, alpha=0.5, label=way)

    return svg(draw, label, "regions", name)


def gallery(folder: Path, name: str, told: dict, figures: dict, records: Iterable[dict], number: int = 48) -> str:
    """The page. folder: what records' pictures are relative to. told: settings to print. figures: shards.statistics'."""
    found = sample(records, number)
    for some in found.values():
        for record in some:
            region = {"box": record["box"], "phrase": record["phrase"]}
            source = {"path": str(folder / record["image"]), "bytes": None}
            record["shown"] = thumbnail(source, [region], {record["phrase"]: COLOURS[0]})
    sections = [("Kept", figures["kept"], found.get("", []))]
    sections += [(f"Rejected: {reason}", count, found[reason]) for reason, count in figures["rejected"].items()]
    labels = {
        "unreadable": "pictures cannot be read",
        "without_phrases": "pictures have captions that name nothing to look for",
        "without_detections": "pictures in which nothing was found",
    }
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(TEMPLATE)
    return page.render(
        name=name, told=told, figures=figures, sections=sections, style=STYLE,
        lacking=[f"{figures['pictures'][key]:,} {label}" for key, label in labels.items() if figures["pictures"][key]],
        plots=[_histogram("detector_score", "detector's score", figures), _histogram("clip_score", "similarity", figures)],
    )  # fmt: skip
