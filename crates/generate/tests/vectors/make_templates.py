"""Chat templates of our own, and what transformers renders with them.

    pip install transformers jinja2
    python make_templates.py

writes `templates.json` beside this file: for each case a template, its input, and the text or the refusal.
"""

import datetime
import json
import pathlib

import transformers.utils.chat_template_utils as chat

NOW = 1_709_210_096  # 2024-02-29 12:34:56 UTC


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


chat.datetime = FixedClock

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather at a <place> & a time's \"quote\"",
            "parameters": {
                "type": "object",
                "properties": {
                    "where": {"type": "string", "description": "A city: Zürich, 東京"},
                    "days": {"type": "integer", "minimum": 1, "default": 3},
                    "items": {"type": "array", "items": {"type": "number"}},
                    "exact": {"type": ["boolean", "null"], "default": None},
                },
                "required": ["where"],
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]

SYSTEM = {"role": "system", "content": "  Be kind.\n"}
USER = {"role": "user", "content": " Grüezi <b>you</b> 🙂\n"}
ANSWER = {"role": "assistant", "content": "<think>\nWhat now?\n</think>\n\nHello."}
REASONED = {"role": "assistant", "content": "Yes.", "reasoning": "It is so."}
MORE = {"role": "user", "content": "And\ttomorrow?\n\nTell me."}
PARTS = {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "image"}, {"type": "text", "text": "two"}]}
ARGUMENTS = {"where": "Zürich", "days": 2, "exact": True, "none": None, "x": [1, 2.5, 1e16, 1e-7, "it's"], "o": {"k": {}}}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}],
}
RESULT = {"role": "tool", "content": '{"sky": "blue"}', "tool_call_id": "c1"}

TALK = [SYSTEM, USER, ANSWER, MORE]
CALLS = [SYSTEM, USER, CALL, RESULT]

TEMPLATES = {
    "chatml": (
        """{%- if messages[0]['role'] != 'system' -%}
    {{- '<|im_start|>system\\nYou are a test.<|im_end|>\\n' -}}
{%- endif -%}
{% for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
""",
        [[USER], TALK],
    ),
    "blocks and white space": (
        """{# a comment #}
{{ bos_token }}
  {% for m in messages %}
    {% if loop.first %}
  first
    {%- elif loop.last +%}
  last
    {%- else %}
  between {{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.length }}
    {%+ endif %}
    {% generation %}
  [{{ m.content }}]
    {% endgeneration %}
    {%- generation -%}   tight   {%- endgeneration -%}
  {% else %}
none
  {% endfor %}
{{ eos_token }}{{ unk_token }}{{ absent }}
""",
        [[USER], TALK],
    ),
    "namespaces and scopes": (
        """{% set ns = namespace(last=none, n=0, seen=[]) %}{% set outer = 'outer' %}
{% for m in messages %}{% set outer = 'inner' %}{% set ns.n = ns.n + 1 %}{% set ns.seen = ns.seen + [m.role] %}
{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{% generation %}{% set hidden = 1 %}{{ hidden }}{% endgeneration %}{{ hidden is defined }}
{{ outer }} {% endfor %}{{ outer }} {{ ns.n }} {{ ns.last }} {{ ns.seen }} {{ ns.seen | join('>') }}
{% set block %}a {{ outer }} b{% endset %}[{{ block }}]{% with x = 2 %}{{ x }}{% endwith %}{{ x is defined }}
{% filter upper | trim %}  shout {{ outer }} {% endfilter %}!
""",
        [TALK],
    ),
    "macros": (
        """{%- macro show(value, depth=0, sep=', ') -%}
    {%- if value is mapping -%}
        {%- for k, v in value.items() -%}{{ '  ' * depth }}{{ k }}: {{ show(v, depth + 1) }}{{ '' if loop.last else sep }}{%- endfor -%}
    {%- elif value is iterable and value is not string -%}
        [{%- for v in value -%}{{ show(v, depth + 1, sep=';') }}{%- if not loop.last -%}|{%- endif -%}{%- endfor -%}]
    {%- else -%}
        {{ value }}
    {%- endif -%}
{%- endmacro -%}
{%- macro wrap(tag) -%}<{{ tag }}>{{ caller() }}</{{ tag }}>{%- endmacro -%}
{%- for t in tools or [] %}{{ show(t.function, sep='\\n') }}
{% endfor %}
{%- call wrap('b') %} {{ messages | length }} {% endcall %}
{%- for m in messages if m.tool_calls %}{% for c in m.tool_calls %}{{ show(c.function.arguments) }}{% endfor %}{% endfor %}
""",
        [[USER], CALLS],
    ),
    "loop controls": (
        """{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.role }},
{%- if m.role == 'assistant' %}{% break %}{% endif %}
{% endfor %} {% for m in messages[::-1] %}{{ m.role[0] }}{% if loop.index == 2 %}{% break %}{% endif %}{% endfor %}
{% for m in messages %}{{ loop.cycle('a', 'b') }}{{ loop.previtem.role if loop.previtem is defined else '^' }}{{ loop.nextitem.role if not loop.last else '$' }}{{ loop.changed(m.role) }} {% endfor %}
""",
        [TALK, CALLS],
    ),
    "json": (
        """{{ tools | tojson }}
{{ tools[0] | tojson(indent=2) }}
{{ tools[0].function.parameters | tojson(indent=4, sort_keys=true) }}
{{ messages[-1] | tojson(ensure_ascii=true) }}
{{ messages[1] | tojson(separators=(',', ':')) }}
{{ [] | tojson(indent=2) }}{{ {} | tojson(indent=2) }}{{ {'a': [{}], 'b': none, '3': 1} | tojson(indent=1) }}
{{ '\\u0001\\x7f\\\\"/</é\\t🙂' | tojson }}{{ '\\x7fé🙂' | tojson(true) }}{{ 1.0 | tojson }} {{ 0.1 | tojson }} {{ true | tojson }} {{ none | tojson }}
{% for m in messages if m.tool_calls is defined %}{{ m.tool_calls | tojson }}{% endfor %}
""",
        [CALLS],
    ),
    "python values": (
        """{{ true }} {{ false }} {{ none }} {{ 1 }} {{ 1.0 }} {{ 2.50 }} {{ -0.5 }} {{ 7 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ 2 ** 10 }} {{ 3 * 'ab' }}
{{ [1, 'a', true, none, 1.5, "it's", 'say "hi"'] }} {{ ('x', 1) }} {{ {'k': 'v', 'n': [none]} }} {{ dict(a=1, b='c') }}
{{ 'a' ~ 1 ~ none ~ true ~ [1] }} {{ 'x' is string }} {{ 1 is number }} {{ 1.5 is float }} {{ 1 is integer }} {{ true is boolean }} {{ none is none }}
{{ 'abc' is iterable }} {{ 'abc' is sequence }} {{ {} is mapping }} {{ {} is sequence }} {{ [] is iterable }} {{ 5 is iterable }} {{ absent is defined }} {{ absent is iterable }} {{ absent is none }}
{{ 'b' in 'abc' }} {{ 'k' in {'k': 1} }} {{ 2 in [1, 2] }} {{ 'z' not in 'abc' }} {{ 1 < 2 <= 2 }} {{ 'a' == "a" and not false or true }} {{ 5 is divisibleby 5 }} {{ 3 is odd }} {{ 'a' is eq 'a' }} {{ 2 is in [2] }}
{{ 'abcdef'[1:3] }} {{ 'abcdef'[-2:] }} {{ 'abcdef'[::-1] }} {{ 'abc'[0] }}{{ 'abc'[-1] }} {{ [1, 2, 3][1:] }} {{ [1, 2, 3][-1] }} {{ range(3) | list }} {{ range(4, 0, -2) | list }}
{{ messages[0].absent }}{{ messages[0]['absent'] }} {{ none or 'or' }} {{ '' or 0 or [] or 'empty' }} {{ 'yes' if messages else 'no' }}{{ 'x' if false }}
""",
        [[USER]],
    ),
    "python methods": (
        """{% set c = messages[-1].content %}
{{ ANSWER }}{{ c.strip() }}|{{ c.lstrip() }}|{{ c.rstrip() }}|{{ c.strip('\\n') }}|{{ 'xxaxx'.strip('x') }}|{{ c.upper() }}|{{ c.lower() }}|{{ 'two words'.title() }}|{{ 'abc'.capitalize() }}
{{ 'a</think>b</think>c'.split('</think>')[-1] }} {{ 'a b  c'.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', 1) }} {{ 'l1\\nl2\\r\\nl3'.splitlines() }} {{ 'k=v=w'.partition('=') }} {{ 'k=v=w'.rpartition('=') }}
{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith(('x', 'c')) }} {{ 'abcabc'.replace('b', 'X') }} {{ 'abcabc'.replace('b', 'X', 1) }} {{ 'abcabc'.find('c') }} {{ 'abc'.find('z') }} {{ 'abcabc'.rfind('b') }} {{ 'abcabc'.count('a') }} {{ 'abc'.index('c') }}
{{ '{} {}'.format('a', 1) }} {{ '%s' | format('z') }} {{ '-'.join(['a', 'b']) }} {{ 'prefix'.removeprefix('pre') }} {{ 'suffix'.removesuffix('fix') }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ ' '.isspace() }} {{ 'aB'.swapcase() }}
{% set d = {'b': 1, 'a': {'c': [1, 2]}, 'items': 3} %}{{ d.keys() | list }} {{ d.values() | list }} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %} {{ d.get('z') }} {{ d.get('z', 'default') }} {{ d.a.c[1] }} {{ d['items'] }} {{ d.get('a').get('c') | length }}
{{ [1, 2, 1].count(1) }} {{ [3, 4].index(4) }}
""",
        [[USER], TALK],
    ),
    "filters": (
        """{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'in', ['system']) | map(attribute='role') | list }}
{{ messages | selectattr('tool_calls', 'defined') | list | length }} {{ (messages | first).role }} {{ (messages | last)['role'] }} {{ ['b', 'a'] | sort | join }} {{ [1, 2, 3] | sum }} {{ [3, 1] | max }}{{ [3, 1] | min }} {{ [1, 1, 2] | unique | list }}
{{ {'b': 1, 'a': 2} | dictsort }} {% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{% endfor %} {{ {'b': 1} | items | list }} {{ 'abc' | reverse }} {{ [1, 2] | reverse | list }} {{ '3' | int + 1 }} {{ 'x' | int(7) }} {{ '1.5' | float }} {{ 3.7 | int }} {{ 2.5 | round }} {{ -3 | abs }}
{{ absent | default('d') }} {{ '' | default('e', true) }} {{ none | default('n') }} {{ '  t ' | trim }}| {{ 'a\\nb' | indent(4) }} {{ 'a\\nb' | indent(2, true) }} {{ 'aXb' | replace('X', '-') }} {{ 'word' | capitalize }} {{ 'two words' | title }} {{ [1, true, none, 'x', {'a': 1}] | string }} {{ 5 | string + 'x' }}
{{ ['a', 'b', 'c'] | batch(2) | list }} {{ messages | length }} {{ 'abc' | list }} {{ 'abc' | first }}{{ 'abc' | last }} {{ ['A', 'b'] | map('lower') | join }} {{ [0, 1, ''] | select | list }} {{ [0, 1] | reject | list }} {{ '<b>' | safe }} {{ '<b>' | e }}
{% for role, group in messages | groupby('role') %}{{ role }}:{{ group | length }} {% endfor %}
""",
        [TALK],
    ),
    "time": (
        "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%Y-%m-%dT%H:%M:%S') }}|{{ strftime_now('%A, %B %-d, %I:%M %p %j') }}",
        [[USER]],
    ),
    "refusal": (
        """{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate, got ' + m.role) }}{% endif %}{{ m.role }}{% endfor %}""",
        [[USER], [USER, ANSWER, MORE], TALK],
    ),
    "undefined attribute": ("{{ messages[0].absent.deeper }}", [[USER]]),
    "undefined sum": ("{{ 'a' + absent }}", [[USER]]),
    "parts": (
        """{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p.type == 'text' %}{{ p['text'] }}{% else %}<{{ p.type }}>{% endif %}{% endfor %}{% endif %}{% endfor %}""",
        [[USER, PARTS]],
    ),
    "reasoning": (
        """{% for m in messages %}{% if m.role == 'assistant' %}{% set r = '' %}
{%- if m.reasoning_content is defined %}{% set r = m.reasoning_content %}{% elif '</think>' in m.content %}{% set r = m.content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{% endif %}
<think>{{ r }}</think>{{ m.thinking }}{{ m.content is none }}{{ m.content is defined }}{% endif %}{% endfor %}
{% if enable_thinking is defined and enable_thinking is false %}<think>\\n\\n</think>{% endif %}{{ effort | default('low') }}""",
        [TALK, [USER, REASONED], CALLS],
    ),
}

VARIABLES = {"enable_thinking": False, "effort": "high"}


def main():
    cases = []
    for name, (template, conversations) in TEMPLATES.items():
        for messages in conversations:
            for add in (True, False):
                case = {
                    "name": name,
                    "template": template,
                    "messages": messages,
                    "tools": TOOLS if messages is CALLS else None,
                    "add_generation_prompt": add,
                    "variables": VARIABLES if add else {},
                    "special": SPECIAL,
                    "now": NOW,
                }
                # As apply_chat_template does before it renders.
                dense = [{k: v for k, v in m.items() if v is not None} for m in messages]
                try:
                    [case["text"]], _ = chat.render_jinja_template(
                        [dense],
                        tools=case["tools"],
                        chat_template=template,
                        add_generation_prompt=add,
                        **{**SPECIAL, **case["variables"]},
                    )
                except Exception as error:
                    case["refusal"] = str(error)
                cases.append(case)
    path = pathlib.Path(__file__).parent / "templates.json"
    path.write_text(json.dumps(cases, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


main()
