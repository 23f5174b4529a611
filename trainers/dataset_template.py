"""The page of dataset_page.py, as a jinja2 template. No address in it leads out of the file."""

STYLE = """\
:root { color-scheme: light dark; --shade: color-mix(in srgb, CanvasText 7%, Canvas);
  --line: color-mix(in srgb, CanvasText 18%, Canvas); --soft: color-mix(in srgb, CanvasText 65%, Canvas); }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem;
  background: Canvas; color: CanvasText; }
h1 { font-size: 1.7rem; margin: .5rem 0 0; }
h2 { margin: 2.5rem 0 .5rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { margin: 1.5rem 0 .4rem; font-size: 1.05rem; }
p { max-width: 46rem; }
.soft, small { color: var(--soft); }
a { color: inherit; }
nav { display: flex; flex-wrap: wrap; gap: 0 1rem; }
.heads { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .7rem; margin: 1.2rem 0; }
.heads div { background: var(--shade); border-radius: .5rem; padding: .6rem .8rem; }
.heads b { display: block; font-size: 1.5rem; line-height: 1.2; }
.warn { border-left: .3rem solid #d9822b; background: var(--shade); padding: .6rem 1rem; border-radius: .3rem; }
.warn.fine { border-color: #2da44e; }
.warn ul { margin: .3rem 0; padding-left: 1.2rem; }
.strip { display: flex; gap: .4rem; overflow: hidden; margin: 1.2rem 0; height: 6rem; }
.strip img { height: 100%; width: auto; border-radius: .3rem; }
.scroll { overflow-x: auto; margin: .5rem 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .2rem .7rem; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
table.files td { text-align: left; white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; }
svg text { font-family: inherit !important; }
.chips { line-height: 1.4; margin-top: .2rem; }
.chips span { display: inline-block; max-width: 100%; margin: .15rem 0; padding: .05rem .45rem; overflow-wrap: anywhere;
  background: var(--shade); border-radius: .4rem; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 14rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
figure img { width: 100%; height: auto; border-radius: .3rem; background: var(--shade); }
figcaption { font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; }
figcaption p { margin: .2rem 0; white-space: pre-line; }
.asked { font-style: italic; }
img.small { image-rendering: pixelated; }
.gone { background: var(--shade); padding: 2rem .5rem; text-align: center; border-radius: .3rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 1.2rem; }
.pairs > div, .group { display: flex; flex-wrap: wrap; gap: .6rem; align-items: flex-start; break-inside: avoid; }
.pairs figure { flex: 1 1 9rem; max-width: 16rem; }
.group { padding: .7rem 0; border-bottom: 1px solid var(--line); }
.group figure { width: 10rem; }
@media print {
  :root { color-scheme: light; }
  nav { display: none; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .sheet { grid-template-columns: repeat(4, 1fr); }
  .scroll { overflow: visible; }
  table { font-size: 8.5pt; }
  th, td { padding: .15rem .4rem; white-space: normal; }
  h2, h3 { break-after: avoid; }
}
"""

MACROS = """\
{% macro shown(one, name) %}
{% if one %}
<img src="{{ one.url }}" width="{{ one.width }}" height="{{ one.height }}" alt="{{ name }}"{{ " class=small" if one.small }}>
{% else %}
<div class="gone">cannot be read</div>
{% endif %}
{% endmacro %}

{% macro placed(place) %}
<figure>{{ shown(place.shown, place.name) }}
<figcaption>{{ place.split }}, row {{ place.row }} <small><bdi>{{ place.name }}</bdi></small></figcaption></figure>
{% endmacro %}

{% macro chips(pairs) %}
<p class="chips">
{% for what, number in pairs %}
<span dir="auto">{{ what | clipped }} <small>{{ number | number }}</small></span>
{% endfor %}
</p>
{% endmacro %}

{% macro cell(value, part) %}
{% if value is mapping and part %}
{{ value[part] | number }}
{% elif value is mapping %}
{{ value.median | number }} <span class="soft">({{ value.p5 | number }} – {{ value.p95 | number }})</span>
{% elif value is sequence %}
{{ value | length | number }}
{% else %}
{{ value | number }}
{% endif %}
{% endmacro %}

{% macro table(kind, lines) %}
<div class="scroll"><table>
<tr><th></th>{% for name, split in splits.items() if split[kind] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for label, key, part in lines %}
<tr><td>{{ label }}</td>
{% for split in splits.values() if split[kind] %}<td>{{ cell(split[kind][key], part) }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
{% endmacro %}

{% macro line(label, kind, key) %}
<tr><td>{{ label }}</td>
{% for split in splits.values() %}<td>{{ (split if not kind else split[kind] or {key: 0})[key] | number }}</td>{% endfor %}</tr>
{% endmacro %}

{% macro drawn(names) %}
<div class="plots">
{% for name in names if name in plots %}{{ plots[name] }}{% endfor %}
</div>
{% endmacro %}
"""

TOP = """\
<h1>What is in <bdi>{{ name }}</bdi></h1>
<p class="soft">{{ figures.dataset.dataset }}: {{ splits | join(", ") }}</p>
<nav>
<a href="#captions">Captions</a>
{% if pictures %}<a href="#pictures">Pictures</a>{% endif %}
{% if sounds %}<a href="#sounds">Sounds</a>{% endif %}
{% if regions %}<a href="#regions">Regions</a>{% endif %}
<a href="#twice">Twice</a> <a href="#sample">Sample</a> <a href="#how">How</a>
</nav>
<div class="heads">
<div><b>{{ parts | sum(attribute="rows") | number }}</b> rows{{ " in %d splits" % (splits | length) if splits | length > 1 }}</div>
{% if pictures %}
<div><b>{{ pictures | sum(attribute="number") | number }}</b> pictures, {{ pictures | sum(attribute="bytes_in_all") | bytes }}</div>
{% endif %}
{% if sounds %}
<div><b>{{ sounds | sum(attribute="number") | number }}</b> sounds,
{{ (60 * sounds | sum(attribute="hours")) | number }} minutes</div>
{% endif %}
<div><b>{{ parts | sum(attribute="captions.number") | number }}</b> captions</div>
{% if parts[0].captions.words %}
<div><b>{{ parts[0].captions.words.mean | number }}</b> words a caption in {{ splits | first }}</div>
<div><b>{{ parts[0].captions.vocabulary | number }}</b> different words in {{ splits | first }}</div>
{% endif %}
{% if regions %}<div><b>{{ regions | sum(attribute="number") | number }}</b> regions</div>{% endif %}
</div>
{% if figures.warnings %}
<div class="warn"><b>To know before training on it</b>
<ul>{% for warning in figures.warnings %}<li>{{ warning }}</li>{% endfor %}</ul></div>
{% else %}
<div class="warn fine"><b>Nothing to warn of.</b> All that was read can be opened, no picture or sound is there twice,
no split shows what another does, no caption is empty.</div>
{% endif %}
{% if figures.notes %}<ul class="soft">{% for note in figures.notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}
<div class="strip">
{% for card in (sheets.values() | first)[:12] if card.media and card.media[0] %}
<img src="{{ card.media[0].url }}" alt="">
{% endfor %}
</div>

<h2>Splits</h2>
<div class="scroll"><table>
<tr><th></th>{% for name in splits %}<th>{{ name }}</th>{% endfor %}</tr>
{{ line("rows read", "", "rows") }}
{{ line("rows there", "", "rows_there") }}
{% if pictures %}{{ line("pictures, each counted once", "pictures", "number") }}{% endif %}
{% if sounds %}{{ line("sounds, each counted once", "sounds", "number") }}{% endif %}
{{ line("captions", "captions", "number") }}
</table></div>
"""

SAID = """\
<h2 id="captions">Captions</h2>
{{ table("captions", [
  ("words: median (5 % – 95 %)", "words", ""), ("mean", "words", "mean"), ("shortest", "words", "min"),
  ("longest", "words", "max"), ("captions without words", "empty", ""), ("different captions", "distinct", ""),
  ("words in all", "words_in_all", ""), ("different words", "vocabulary", ""), ("of these, seen once", "once", "")]) }}
{{ drawn(["words"]) }}
{% for name, split in splits.items() if split.captions.unseen is defined %}
{% set unseen = split.captions.unseen %}
{% if loop.first %}<h3>Words that {{ unseen.of }} does not have</h3>{% endif %}
<p><b>{{ name }}</b>: {{ unseen.words | number }} of its {{ split.captions.vocabulary | number }} words,
{{ (100 * unseen.share_of_text) | number }} % of its text. {{ unseen.captions_seen | number }} of its
{{ split.captions.distinct | number }} different captions are in {{ unseen.of }} word for word.</p>
{% if unseen.frequent %}{{ chips(unseen.frequent) }}{% endif %}
{% endfor %}
<h3>Most frequent words</h3>
{% for name, split in splits.items() if split.captions.frequent %}<b>{{ name }}</b> {{ chips(split.captions.frequent) }}{% endfor %}
{% for name, split in splits.items() if split.captions.once %}
{% if loop.first %}<h3>Words seen once</h3>{% endif %}
<p><b>{{ name }}</b>: {{ split.captions.once | number }}, as
<span dir="auto">{{ split.captions.once_among_them | join(", ") | clipped }}</span></p>
{% endfor %}
{% for name, split in splits.items() if split.captions.repeated %}
{% if loop.first %}<h3>Captions said more than once</h3>{% endif %}
<b>{{ name }}</b> {{ chips(split.captions.repeated) }}
{% endfor %}
{% if prompts %}
<h3>Prompts</h3>
{{ table("prompts", [
  ("prompts", "number", ""), ("different prompts", "distinct", ""), ("words: median (5 % – 95 %)", "words", "")]) }}
{% for name, split in splits.items() if split.prompts and split.prompts.repeated %}
<b>{{ name }}</b> {{ chips(split.prompts.repeated) }}
{% endfor %}
{% endif %}
"""

SHOWN = """\
{% if pictures %}
<h2 id="pictures">Pictures</h2>
<p class="soft">Median (5 % – 95 %), of pictures turned upright.</p>
{{ table("pictures", [
  ("width in pixels", "width", ""), ("height in pixels", "height", ""), ("width over height", "aspect", ""),
  ("megapixels", "megapixels", ""), ("kilobytes of a file", "kilobytes", ""), ("least width", "width", "min"),
  ("least height", "height", "min"), ("greatest width", "width", "max"), ("greatest height", "height", "max"),
  ("different sizes", "different_sizes", ""), ("of nearly one colour", "plain", ""),
  ("cannot be read", "unreadable", "")]) }}
{{ drawn(["sizes", "megapixels", "aspect"]) }}
{% for name, split in splits.items() if split.pictures and split.pictures.number %}
<p><b>{{ name }}</b>:
{% for kind, number in split.pictures.kinds %}{{ number | number }} {{ kind }}{{ ", " if not loop.last else "." }}
{% endfor %}
Most frequent sizes:
{% for width, height, number in split.pictures.sizes[:6] %}
{{ width }} × {{ height }} ({{ number | number }}){{ ", " if not loop.last else "." }}
{% endfor %}</p>
{% endfor %}
{% endif %}
{% for kind in ("pictures", "sounds") if figures.unreadable[kind] %}
<h3>{{ kind | capitalize }} that cannot be read</h3>
<div class="scroll"><table class="files">
{% for one in figures.unreadable[kind][:LISTED] %}
<tr><td>{{ one.name or "(no name)" }}</td><td>{{ one.split }}, row {{ one.row }}</td><td>{{ one.reason | clipped }}</td></tr>
{% endfor %}
</table></div>
{% if figures.unreadable[kind] | length > LISTED %}
<p>And {{ (figures.unreadable[kind] | length - LISTED) | number }} more: all are in the JSON beside this page.</p>
{% endif %}
{% endfor %}

{% if sounds %}
<h2 id="sounds">Sounds</h2>
{{ table("sounds", [
  ("seconds: median (5 % – 95 %)", "seconds", ""), ("shortest", "seconds", "min"), ("longest", "seconds", "max"),
  ("hours in all", "hours", ""), ("silent", "silent", ""), ("clipped", "clipped", ""),
  ("cannot be read", "unreadable", "")]) }}
{{ drawn(["seconds"]) }}
{% for name, split in splits.items() if split.sounds %}
<p><b>{{ name }}</b>:
{% for rate, number in split.sounds.rates %}{{ number | number }} at {{ rate | number }} Hz, {% endfor %}
{% for channels, number in split.sounds.channels %}
{{ number | number }} with {{ channels }} channel{{ "s" if channels > 1 }}{{ ", " if not loop.last else "." }}
{% endfor %}
{% for kind in ("silent", "clipped") if split.sounds[kind] %}
{{ kind | capitalize }}: {{ split.sounds[kind][:LISTED] | join(", ") | clipped }}.
{% endfor %}</p>
{% endfor %}
{% endif %}

{% if regions %}
<h2 id="regions">Regions</h2>
{{ table("regions", [
  ("regions", "number", ""), ("pictures with regions", "pictures", ""),
  ("of a picture: median (5 % – 95 %)", "a_picture", ""), ("most of a picture", "a_picture", "max"),
  ("% of the picture that one takes", "percent", ""), ("different phrases", "phrases", ""),
  ("boxes over the edge", "outside", ""), ("boxes without area", "flat", "")]) }}
{{ drawn(["regions", "region_percent"]) }}
<h3>Most frequent phrases</h3>
{% for name, split in splits.items() if split.regions %}<b>{{ name }}</b> {{ chips(split.regions.frequent) }}{% endfor %}
{% endif %}
"""

TWICE = """\
<h2 id="twice">What is there twice</h2>
<p>The same: pixel for pixel. Nearly the same: patterns of light and dark (a perceptual hash) at most
{{ figures.duplicates.distance }} of 63 bits apart, and colours at most {{ figures.duplicates.tolerance[0] }} of 255 levels apart
in each of 8 × 8 fields, {{ figures.duplicates.tolerance[1] }} on average. That finds pictures that were encoded again, resized or
slightly retouched, and not those that were cropped, mirrored or made much brighter. Drawings that differ in a detail may be among
them: look.</p>
<div class="scroll"><table>
<tr><th>within</th><th>copies</th><th>nearly the same as another</th>{% if sounds %}<th>copies of sounds</th>{% endif %}</tr>
{% for name, one in figures.duplicates.within.items() %}
<tr><td>{{ name }}</td><td>{{ one.copies | number }}</td><td>{{ one.alike | number }}</td>
{% if sounds %}<td>{{ one.sounds | number }}</td>{% endif %}</tr>
{% endfor %}
</table></div>
{% if leaks %}
<div class="scroll"><table>
<tr><th>of one split</th><th>in another</th><th>the same pictures</th><th>nearly the same</th><th>of</th>
<th>the same captions</th><th>of different</th>{% if sounds %}<th>the same sounds</th><th>of</th>{% endif %}</tr>
{% for leak, _ in leaks %}
<tr><td>{{ leak.to }}</td><td>{{ leak.from }}</td>
<td>{{ leak.same | number }}</td><td>{{ leak.alike | number }}</td><td>{{ leak.pictures | number }}</td>
<td>{{ leak.captions_same | number }}</td><td>{{ leak.captions | number }}</td>
{% if sounds %}<td>{{ leak.sounds_same | number }}</td><td>{{ leak.sounds | number }}</td>{% endif %}</tr>
{% endfor %}
</table></div>
{% endif %}
{% for leak, pairs in leaks if pairs %}
<h3>In {{ leak.to }} and in {{ leak.from }}</h3>
{% if leak.same + leak.alike > pairs | length %}
<p class="soft">{{ pairs | length }} of {{ (leak.same + leak.alike) | number }} are shown.</p>
{% endif %}
<div class="pairs">
{% for places in pairs %}<div>{% for place in places %}{{ placed(place) }}{% endfor %}</div>{% endfor %}
</div>
{% endfor %}
{% for kind, title in (("same", "The same, within a split"), ("alike", "Nearly the same, within a split"))
  if groups[kind].number %}
{% set found = groups[kind] %}
<h3>{{ title }}</h3>
<p class="soft">{{ found.number | number }} group{{ "s, the largest first" if found.number > 1 }}{{
  "; %d are shown, all are in the JSON beside this page" % (found.shown | length) if found.number > found.shown | length }}.</p>
{% for places, more in found.shown %}
<div class="group">{% for place in places %}{{ placed(place) }}{% endfor %}
{% if more %}<p>and {{ more | number }} more</p>{% endif %}</div>
{% endfor %}
{% endfor %}
"""

SAMPLE = """\
<h2 id="sample">A sample</h2>
<p class="soft">Drawn at random (seed {{ figures.dataset.seed }}) from the rows that were read.</p>
{% for name, cards in sheets.items() if cards %}
<h3>{{ name }}</h3>
<div class="sheet">
{% for card in cards %}
<figure>{% for one in card.media %}{{ shown(one, "row %d" % card.row) }}{% endfor %}
<figcaption>
{% if card.asked and splits[name].prompts.distinct > 1 %}<p class="asked" dir="auto">{{ card.asked | clipped }}</p>{% endif %}
{% for text in card.told[:CAPTIONS] %}<p dir="auto">{{ text | clipped }}</p>{% endfor %}
<small>row {{ card.row }}{{ ", %d more captions" % (card.told | length - CAPTIONS) if card.told | length > CAPTIONS }}</small>
{% for phrase, colour in card.colours.items() %}
<small><span style="color: {{ colour }}">■</span>&nbsp;<bdi>{{ phrase | clipped }}</bdi></small>
{% endfor %}
</figcaption></figure>
{% endfor %}
</div>
{% endfor %}

<h2 id="how">How this was made</h2>
<p>By <code>recipes/explore.py</code> of Sightline:
{% for key, value in figures.dataset.items() if value is not none and key not in ("output", "workers") %}
<code>{{ key }}={{ value }}</code>{{ ", " if not loop.last else "." }}
{% endfor %}
A word is a run of letters and digits in lower case (don't and red-haired are one each; of Chinese and Japanese, a character is
one). Captions are the same that have the same words. A picture that several rows of a split show counts once. All figures, and
the names of all that is unreadable or there twice, are in the JSON beside this page.</p>
"""

TEMPLATE = (
    """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>What is in {{ name }}</title>
<style>
"""
    + STYLE
    + "</style>\n</head>\n<body>\n"
    + MACROS
    + """\
{% set parts = splits.values() | list %}
{% set pictures = parts | map(attribute="pictures") | select | list %}
{% set sounds = parts | map(attribute="sounds") | select | list %}
{% set regions = parts | map(attribute="regions") | select | list %}
{% set prompts = parts | map(attribute="prompts") | select | list %}
"""
    + TOP
    + SAID
    + SHOWN
    + TWICE
    + SAMPLE
    + "</body>\n</html>\n"
)
