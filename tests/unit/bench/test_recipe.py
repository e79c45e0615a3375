"""Recipes of engines, and whether two servers serve the same model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pelton.bench.engines.recipe import load_recipes
from pelton.bench.engines.same_model import PROBES, Fingerprint, agreement, differences, remarks
from pelton.errors import ConfigError

RECIPES = Path(__file__).parents[3] / "recipes"


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_recipes_in_the_repository_can_be_read(path):
    for engine in load_recipes([str(path)]).engines:
        assert "${port}" in engine.command + str(engine.env)
        assert engine.command.replace("${port}", "").count("$") == 0


def test_the_readme_lists_every_recipe():
    text = (RECIPES / "README.md").read_text()
    assert all(f"`{path.name}`" in text for path in RECIPES.glob("*.yaml"))


def test_files_are_joined_and_the_first_says(tmp_path):
    first = write(tmp_path / "a", "variables: {m: one}\nworkload: {num_requests: 3}\n"
                                  "engines: [{name: a, command: 'x ${m} ${port}'}]")
    second = write(tmp_path / "b", "variables: {m: two, n: three}\nworkload: {num_requests: 9, concurrency: [1, 2]}\n"
                                   "engines: [{name: b, command: 'y ${m} ${n}', env: {K: '${n}'}}]")
    found = load_recipes([first, second], ["n=four=4"])
    assert [e.command for e in found.engines] == ["x one ${port}", "y one four=4"]
    assert found.engines[1].env == {"K": "four=4"}
    assert sorted(found.workload_argv()) == ["--concurrency=1,2", "--num-requests=3"]


def test_a_workload_becomes_words_of_a_command_line(tmp_path):
    path = write(tmp_path / "a", "workload: {calibrate: false, watch_server: true, stages: '5:30', num_trials: 2}\n"
                                 "engines: [{name: a, url: 'http://x'}]")
    assert load_recipes([path]).workload_argv() == ["--no-calibrate", "--watch-server", "--stages=5:30",
                                                    "--num-trials=2"]


@pytest.mark.parametrize(("given", "words"), [
    ((), ["--request-rate=5", "--arrivals=constant", "--num-trials=2"]),
    (("request_rate", "num_trials"), ["--request-rate=5", "--arrivals=constant", "--num-trials=2"]),
    (("concurrency",), ["--num-trials=2"])])
def test_a_load_on_the_command_line_replaces_another_kind_of_load(tmp_path, given, words):
    path = write(tmp_path / "a", "workload: {request_rate: 5, arrivals: constant, num_trials: 2}\n"
                                 "engines: [{name: a, url: 'http://x'}]")
    assert load_recipes([path]).workload_argv(given) == words


@pytest.mark.parametrize(("text", "message"), [
    ("engines: [{name: a, command: x, port: 3}]", "unknown field `port`"),
    ("machines: []", "unknown field `machines`"),
    ("engines: [{command: x}]", "missing required field `name`"),
    ("engines: [{name: a}]", "either a command or a url"),
    ("engines: [{name: a, command: x, url: y}]", "either a command or a url"),
    ("engines: [{name: a/b, command: x}]", "engine name must be"),
    ("engines: [{name: a, command: x}, {name: a, command: y}]", "different names"),
    ("engines: []", "different names"),
    ("engines: [{name: a, command: 'x ${what}'}]", r"variable \$\{what\} has no value"),
    ("engines: [{name: a, command: 'x $'}]", r"write \$\$"),
    ("engines: {", "is no YAML"), ("", "Expected `object`")])
def test_recipes_that_are_none(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipes([write(tmp_path / "r.yaml", text)])


def test_unknown_variables_and_missing_files(tmp_path):
    path = write(tmp_path / "r.yaml", "variables: {m: x}\nengines: [{name: a, command: x}]")
    with pytest.raises(ConfigError, match="with a variable of the recipe"):
        load_recipes([path], ["n=1"])
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipes([str(tmp_path / "none.yaml")])


BASE = Fingerprint(texts=[f"answer number {i}" for i in range(len(PROBES))], prompt_tokens=list(range(len(PROBES))),
                   tokenizer_sha256="0", template_tokens=4, route="openai chat")


def test_the_same_answers_are_the_same_model():
    assert list(differences(BASE, BASE)) == []
    assert agreement(BASE, BASE) == 1.0


def test_one_answer_that_turns_another_way_is_rounding_and_other_answers_are_another_model():
    turned = dataclasses.replace(BASE, texts=["answer otherwise", *BASE.texts[1:]])
    assert list(differences(BASE, turned)) == []
    assert any("7 of 8" in text for text in remarks(BASE, turned))
    other = dataclasses.replace(BASE, texts=[text[::-1] for text in BASE.texts])
    assert "greedy answers agree for 0%" in next(differences(BASE, other))


def test_counts_and_tokenizers_tell_models_apart():
    longer = dataclasses.replace(BASE, prompt_tokens=[n + 2 for n in BASE.prompt_tokens])
    assert list(differences(BASE, longer)) == []
    assert any("+2 tokens" in text for text in remarks(BASE, longer))
    odd = dataclasses.replace(BASE, prompt_tokens=[n + n % 2 for n in BASE.prompt_tokens])
    assert any("counted differently" in text for text in differences(BASE, odd))
    assert any("tokenizers" in text for text in differences(BASE, dataclasses.replace(BASE, tokenizer_sha256="1")))
    assert list(differences(BASE, dataclasses.replace(BASE, route="triton generate"))) == [
        "they are asked by different routes (openai chat and triton generate)"]
    silent = dataclasses.replace(BASE, prompt_tokens=[None] * len(PROBES))
    assert list(differences(BASE, silent)) == []
    assert any("no usage" in text for text in remarks(BASE, silent))
