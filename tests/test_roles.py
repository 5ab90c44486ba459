"""Role graphs of captions: accuracy of the rules on annotated captions, and the form of the graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import amex, write_lines
from hypothesis import given
from hypothesis import strategies as st
from real_captions import real_captions

from amex.language.parsing import analyse
from amex.language.rolegraphs import graph_of_dependencies
from amex.language.roles import role_graph
from amex.train.rolegraphs import graph_tensors

LABELS = Path(__file__).parent / "data" / "role_labels.jsonl"


def precision_and_recall(pairs: list[tuple[set, set]]) -> tuple[float, float]:
    """Return precision and recall of (predicted, true) sets, in percent."""
    right = sum(len(found & true) for found, true in pairs)
    return 100 * right / sum(len(found) for found, _ in pairs), 100 * right / sum(len(true) for _, true in pairs)


def test_the_accuracy_on_real_captions_matches_the_documentation(
    real_data: Path,
) -> None:
    captions = real_captions(real_data / "annotations")
    verbs, nouns = [], []
    for line in LABELS.read_text().splitlines():
        label = json.loads(line)
        actual = analyse(captions[label["data_set"]][label["video"]][label["index"]])
        verbs.append((set(actual.verbs), set(label["verbs"])))
        nouns.append((set(actual.phrases), {tuple(span) for span in label["nouns"]}))
    assert len(verbs) == 200
    measured = [round(figure, 1) for pairs in (verbs, nouns) for figure in precision_and_recall(pairs)]
    page = (Path(__file__).parents[1] / "docs" / "concepts" / "hgr.md").read_text()
    assert "| verbs | {} | {} |\n| noun phrases | {} | {} |".format(*measured) in page


def said(caption: str) -> set[tuple[str, str, str]]:
    """Return (verb, role, argument) of a caption's graph, in words."""
    nodes, edges = role_graph(caption)
    words = {name: " ".join(node["words"]) for name, node in nodes.items()}
    return {(words[verb], role, words[argument]) for verb, argument, role in edges}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (
            "the red circle pushes the blue square to the right",
            {
                ("pushes", "ARG0", "the red circle"),
                ("pushes", "ARG1", "the blue square"),
                ("pushes", "ARGM-DIR", "to the right"),
            },
        ),
        (
            "a blue square is pushed by a red circle",
            {("pushed", "ARG1", "a blue square"), ("pushed", "ARG0", "by a red circle")},
        ),
        ("dog bite frisbee", {("bite", "ARG0", "dog"), ("bite", "ARG1", "frisbee")}),
        (
            "a man gives the baby a tumbler",
            {("gives", "ARG0", "a man"), ("gives", "ARG2", "the baby"), ("gives", "ARG1", "a tumbler")},
        ),
        (
            "add chopped onions and place them in a pan",
            {("add", "ARG1", "chopped onions"), ("place", "ARG1", "them"), ("place", "ARGM-LOC", "in a pan")},
        ),
        (
            "a group of people are watching a screen",
            {("watching", "ARG0", "a group of people"), ("watching", "ARG1", "a screen")},
        ),
        (
            "a guy wearing a red shirt drives a car while talking",
            {
                ("wearing", "ARG0", "a guy"),
                ("wearing", "ARG1", "a red shirt"),
                ("drives", "ARG0", "a guy"),
                ("drives", "ARG1", "a car"),
            },
        ),
    ],
)
def test_verbs_have_their_arguments_in_their_roles(caption: str, expected: set[tuple[str, str, str]]) -> None:
    assert expected <= said(caption)


def test_phrases_without_a_verb_are_nouns() -> None:
    nodes, edges = role_graph("news of marijuana business")
    assert edges == []
    assert [(node["role"], node["words"]) for node in nodes.values()][1:] == [
        ("NOUN", ["news", "of", "marijuana", "business"])
    ]


@given(
    st.text(alphabet=st.sampled_from("ab is the cutting of, and. dogs' \t/&\n7é狗"), max_size=60) | st.text(max_size=40)
)
def test_any_text_has_a_graph_that_a_model_can_use(caption: str) -> None:
    nodes, edges = role_graph(caption)
    words = caption.split()
    assert nodes["ROOT"]["spans"] == list(range(len(words)))
    for verb, argument, role in edges:
        assert nodes[verb]["role"] == "V"
        assert nodes[argument]["role"] == role
    for node in nodes.values():
        assert node["words"] == [words[place] for place in node["spans"]]
    tensors = graph_tensors([caption], {caption: [nodes, edges]}, lambda word: 1)
    assert tensors["ids"].shape[1] == max(1, min(30, len(words)))


def test_only_captions_without_a_stored_graph_are_parsed(tmp_path: Path) -> None:
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "a", "captions": ["a dog barks", "a dog"]})
    assert "2 captions by rules" in amex("manifest", "parse", manifest).output
    graphs_file = tmp_path / "m.rolegraphs.json"
    record = json.loads(graphs_file.read_text())
    record["graphs"]["a dog"] = as_it_was = [{"ROOT": {"words": ["a"], "spans": [0], "role": "as it was"}}, []]
    graphs_file.write_text(json.dumps(record))
    write_lines(manifest, {"clip_id": "a", "video": "a", "captions": ["a dog", "a cat sits"]})
    assert amex("manifest", "parse", manifest).exit_code == 0
    again = json.loads(graphs_file.read_text())["graphs"]
    assert again["a dog"] == as_it_was
    assert again.keys() == {"a dog", "a cat sits"}
    # Graphs of another version of the parser are not reused.
    graphs_file.write_text(json.dumps(record | {"parser": "rules 0"}))
    amex("manifest", "parse", manifest)
    assert json.loads(graphs_file.read_text())["graphs"]["a dog"] != as_it_was


def test_official_graphs_are_read_unchanged(tmp_path: Path) -> None:
    official = Path(__file__).parent / "data" / "hgr" / "sent2rolegraph.augment.json"
    graphs = json.loads(official.read_text())
    subset = list(graphs)[:3]
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "a", "captions": subset})
    assert amex("manifest", "parse", manifest, "--official", official).exit_code == 0
    record = json.loads((tmp_path / "m.rolegraphs.json").read_text())
    assert record["parser"] == "official"
    assert {caption: record["graphs"][caption] for caption in subset} == {
        caption: graphs[caption] for caption in subset
    }
    write_lines(manifest, {"clip_id": "a", "video": "a", "captions": ["unheard of"]})
    refused = amex("manifest", "parse", manifest, "--official", official)
    assert refused.exit_code == 1
    assert "has no graph of 1 caption, the first 'unheard of'" in refused.output


def test_unusable_parsers_are_refused_by_name(tmp_path: Path) -> None:
    spacy = pytest.importorskip("spacy")
    manifest = write_lines(tmp_path / "m.jsonl", {"clip_id": "a", "video": "a", "captions": ["a dog barks"]})
    assert "unknown parser 'allennlp'" in amex("manifest", "parse", manifest, "--parser", "allennlp").output
    assert "is not installed" in amex("manifest", "parse", manifest, "--parser", "spacy:en_core_web_none").output
    spacy.blank("en").to_disk(tmp_path / "blank")
    refused = amex("manifest", "parse", manifest, "--parser", f"spacy:{tmp_path / 'blank'}")
    assert refused.exit_code == 1
    assert "has no dependency parser" in refused.output


def dependencies(*tokens: tuple[str, str, int, str]) -> Any:
    """Return a caption parsed like by spaCy: (word, part of speech, head, dependency)."""
    spacy = pytest.importorskip("spacy")
    words, parts, heads, arcs = zip(*tokens, strict=True)
    vocabulary = spacy.blank("en").vocab
    return spacy.tokens.Doc(vocabulary, words=words, pos=parts, heads=heads, deps=arcs)


def test_dependencies_become_roles() -> None:
    doc = dependencies(
        ("a", "DET", 1, "det"),
        ("man", "NOUN", 3, "nsubj"),
        ("is", "AUX", 3, "aux"),
        ("cutting", "VERB", 3, "ROOT"),
        ("onions", "NOUN", 3, "dobj"),
        ("with", "ADP", 3, "prep"),
        ("a", "DET", 8, "det"),
        ("large", "ADJ", 8, "amod"),
        ("knife", "NOUN", 5, "pobj"),
    )
    nodes, edges = graph_of_dependencies(doc)
    actual = {(" ".join(nodes[v]["words"]), role, " ".join(nodes[a]["words"])) for v, a, role in edges}
    assert actual == {
        ("cutting", "ARG0", "a man"),
        ("cutting", "ARG1", "onions"),
        ("cutting", "ARGM-MNR", "with a large knife"),
    }


def test_passive_dependencies_swap_the_roles() -> None:
    doc = dependencies(
        ("someone", "PRON", 2, "nsubjpass"),
        ("is", "AUX", 2, "auxpass"),
        ("attacked", "VERB", 2, "ROOT"),
        ("by", "ADP", 2, "agent"),
        ("a", "DET", 5, "det"),
        ("deer", "NOUN", 3, "pobj"),
        ("and", "CCONJ", 2, "cc"),
        ("falls", "VERB", 2, "conj"),
    )
    nodes, edges = graph_of_dependencies(doc)
    actual = {(" ".join(nodes[v]["words"]), role, " ".join(nodes[a]["words"])) for v, a, role in edges}
    assert {("attacked", "ARG1", "someone"), ("attacked", "ARG0", "by a deer")} <= actual
