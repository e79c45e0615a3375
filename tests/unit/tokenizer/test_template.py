import datetime

import pytest

from pelton.errors import CheckpointError, RequestError
from pelton.tokenizer.template import ChatTemplate

USER = [{"role": "user", "content": "1 < 2 & 'é'"}]


def render(source, messages=USER, variables=None, **kwargs):
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, variables, **kwargs)


def test_special_tokens_and_flags_are_variables():
    source = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{% if add_generation_prompt %}>{% endif %}"
    assert render(source) == "<s>1 < 2 & 'é'</s>>"
    assert render(source, add_generation_prompt=False) == "<s>1 < 2 & 'é'</s>"


def test_tojson_escapes_no_html_and_keeps_order():
    assert render("{{ {'b': '<é>', 'a': none} | tojson }}") == '{"b": "<é>", "a": null}'
    assert render("{{ [1] | tojson(indent=1) }}") == "[\n 1\n]"


def test_break_and_continue():
    source = ("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}"
              "{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}")
    assert render(source) == "023"


def test_generation_tag_shows_its_body():
    assert render("{% generation %}{{ messages[0].role }}{% endgeneration %}!") == "user!"


def test_blocks_leave_no_blank_lines():
    assert render("a\n  {% if true %}\nb\n  {% endif %}\nc") == "a\nb\nc"


def test_strftime_now():
    assert render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)


def test_tools_and_documents_are_defined_but_empty():
    assert render("{{ tools is none }}{{ documents is none }}") == "TrueTrue"


def test_further_variables_are_passed():
    assert render("{{ enable_thinking }}{{ self_ }}", variables={"enable_thinking": False, "self": 1}) == "False"
    assert render("{{ messages[0].role }}", variables={"messages": [], "source": 1}) == "user"


def test_text_parts_become_one_string():
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert render("{{ messages[0].content }}", parts) == "a\nb"


@pytest.mark.parametrize("part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, "text", 3])
def test_other_parts_are_refused(part):
    with pytest.raises(RequestError, match="text only") as caught:
        render("", [{"role": "user", "content": [part]}])
    assert caught.value.param == "messages"


@pytest.mark.parametrize(("source", "match"), [
    ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ("{{ messages[0].content.foo.bar }}", "UndefinedError"),
    ("{{ messages[0].content + 1 }}", "TypeError"),
    ("{{ messages[9]['role'] }}", "messages"),
    ("{{ 1 // 0 }}", "ZeroDivisionError"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ("{{ messages.append(1) }}", "SecurityError"),
    ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
])
def test_refusals_and_faults_are_request_errors(source, match):
    with pytest.raises(RequestError, match=match) as caught:
        render(source)
    assert caught.value.param == "messages"


def test_invalid_jinja_is_a_checkpoint_error_with_its_line():
    with pytest.raises(CheckpointError, match="line 2"):
        ChatTemplate("a\n{% if %}", {})
