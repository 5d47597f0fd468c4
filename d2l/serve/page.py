"""The page that shows records: documents, questions, answers, and how likely each token of an answer was."""

import jinja2

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light dark; --line: #8884; --dim: #767676; }
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.2rem; } h2 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; }
  nav { display: flex; gap: 1rem; margin: 1rem 0; }
  article { border: 1px solid var(--line); border-radius: 8px; padding: 1rem; margin: 1rem 0; }
  .dim { color: var(--dim); font-size: .85rem; }
  .context { white-space: pre-wrap; max-height: 14rem; overflow: auto; border-left: 3px solid var(--line);
             padding-left: .8rem; margin: .6rem 0; overflow-wrap: anywhere; }
  dt { font-weight: 600; margin-top: .8rem; white-space: pre-wrap; } dd { margin: .2rem 0 0 1rem; }
  .tokens { white-space: pre-wrap; overflow-wrap: anywhere; }
  .tokens span { background: hsl(calc(var(--p) * 120) 75% 50% / .35); border-radius: 3px; cursor: help; }
  .legend span { background: hsl(calc(var(--p) * 120) 75% 50% / .35); padding: 0 .4rem; }
</style>
<h1>{{ title }}</h1>
<p class="dim">{{ "{:,}".format(total) }} records{% if teacher %}; a token's colour is the probability that the target
gave it, <span class="legend">{% for p in (0, 0.25, 0.5, 0.75, 1) %}<span style="--p:{{ p }}">{{ "%d" % (p * 100) }}
%</span>{% endfor %}</span>; point at a token for the likeliest ones{% endif %}.</p>
{% macro pages() %}<nav>
{% if number > 1 %}<a href="?page={{ number - 1 }}">previous</a>{% endif %}
<span class="dim">page {{ number }} of {{ last }}</span>
{% if number < last %}<a href="?page={{ number + 1 }}">next</a>{% endif %}
</nav>{% endmacro %}
{% if last > 1 %}{{ pages() }}{% endif %}
{% for record in records %}
<article>
  <h2>{{ record.id }}</h2>
  <div class="dim">{{ record.source }} · {{ record.split }} · {{ "{:,}".format(record.context|length) }} characters
  · {{ record.queries|length }} questions</div>
  <div class="context">{{ record.context }}</div>
  <dl>
  {% for query in record.queries %}
    <dt>{{ query.question }}{% if query.kind %} <span class="dim">{{ query.kind }}</span>{% endif %}</dt>
    {% for answer in query.answers %}<dd><span class="dim">{{ query.start }}</span>{{ answer }}</dd>{% endfor %}
    {% if query.tokens %}<dd class="tokens">{% for token in query.tokens -%}
      <span style="--p:{{ token.shade }}" title="{{ token.title }}">{{ token.text }}</span>
    {%- endfor %}</dd>{% endif %}
  {% endfor %}
  </dl>
</article>
{% endfor %}
{% if last > 1 %}{{ pages() }}{% endif %}
</html>
"""

TEMPLATE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True).from_string(PAGE)
