"""Make the role graph of a caption by rules: its verbs and their arguments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .parsing import ADVERB, BE, DETERMINER, NOUN, PREPOSITION, PRONOUN, SUBORDINATING, TO, VERB, Sentence, word_set

PLACE = word_set("in on at over under near behind between beside inside outside above below beneath upon off")
PATH = word_set("to from into onto through across along around towards toward up down out past")
TIMES = word_set("morning night day evening afternoon time moment end beginning minutes seconds hours")


def role_graph(caption: str) -> list[Any]:
    """Return ``[nodes, edges]`` as in HGR's files: verbs, and their arguments with the roles of PropBank.

    Phrases that are not an argument of a verb are nodes with the role ``NOUN``.
    """
    sentence = Sentence(caption)
    return _GraphBuilder(sentence, sentence.verbs(), sentence.phrases()).build()


def role_of(preposition: str, last: str) -> str:
    """Return the role of a phrase after a preposition.

    Args:
        last: the last word of the phrase.
    """
    if preposition in ("during", "before", "after") or last in TIMES:
        return "ARGM-TMP"
    if preposition in PLACE:
        return "ARGM-LOC"
    if preposition in PATH:
        return "ARGM-DIR"
    return {"with": "ARGM-MNR", "by": "ARGM-MNR", "for": "ARGM-PRP", "about": "ARG1"}.get(preposition, "ARGM-ADV")


def graph_of(
    words: list[str], claims: Mapping[int, list[tuple[int, int, str]]], phrases: Iterable[tuple[int, int]]
) -> list[Any]:
    """Return ``[nodes, edges]`` of a caption.

    Args:
        claims: the arguments (begin, end, role) of each verb, by position of the verb.
        phrases: [begin, end) of all phrases. A phrase outside of all arguments becomes a node with the role ``NOUN``.
    """
    nodes: dict[str, Any] = {"ROOT": {"words": words, "spans": list(range(len(words))), "role": "ROOT"}}
    names: dict[tuple[int, int, str], str] = {}
    edges = []

    def name(begin: int, end: int, role: str) -> str:
        if (begin, end, role) not in names:
            names[begin, end, role] = str(len(names) + 1)
            span = list(range(begin, end))
            nodes[names[begin, end, role]] = {"words": words[begin:end], "spans": span, "role": role}
        return names[begin, end, role]

    for verb in sorted(claims):
        source = name(verb, verb + 1, "V")
        edges += [[source, name(*claim), claim[2]] for claim in sorted(set(claims[verb]))]
    claimed = {(begin, end) for arguments in claims.values() for begin, end, _ in arguments}
    for begin, end in phrases:
        if not any(first <= begin and end <= last for first, last in claimed):
            name(begin, end, "NOUN")
    return [nodes, edges]


@dataclass
class _GraphBuilder:
    """Assigns the phrases of a sentence to its verbs.

    Attributes:
        claims: the arguments (begin, end, role) of each verb, by position of the verb.
    """

    sentence: Sentence
    verbs: list[int]
    phrases: list[tuple[int, int]]
    claims: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict)

    def build(self) -> list[Any]:
        """Return the graph, see ``graph_of``."""
        arguments = self._arguments()
        self.claims = {verb: [] for verb in self.verbs}
        for index, (begin, end, preposition) in enumerate(arguments):
            self._claim(arguments, index, begin, end, preposition)
        for verb in self.verbs:
            self._subject(arguments, verb)
        return graph_of(self.sentence.spoken, self.claims, [(begin, end) for begin, end, _ in arguments])

    def _arguments(self) -> list[tuple[int, int, str]]:
        """Return (begin, end, preposition) of each phrase. A phrase after ``of`` is joined to the previous phrase."""
        words, arguments = self.sentence.words, []
        for begin, end in self.phrases:
            preposition = words[begin - 1] if begin and self.sentence.kind(begin - 1) in (PREPOSITION, TO) else ""
            if preposition and self.sentence.closes[begin - 1]:
                preposition = ""
            if preposition == "of" and arguments and arguments[-1][1] == begin - 1:
                arguments[-1] = (arguments[-1][0], end, arguments[-1][2])
            else:
                arguments.append((begin - bool(preposition), end, preposition))
        return arguments

    def _claim(self, arguments: list[tuple[int, int, str]], index: int, begin: int, end: int, preposition: str) -> None:
        """Assign a phrase to the verb before it, if there is one."""
        verb = max((verb for verb in self.verbs if verb < begin), default=None)
        if verb is None or not self._reaches(verb, begin):
            return
        if preposition:
            is_agent = preposition == "by" and self._passive(verb)
            role = "ARG0" if is_agent else role_of(preposition, self.sentence.words[end - 1])
        elif self._passive(verb):
            return
        else:
            direct = [claim for claim in self.claims[verb] if claim[2] in ("ARG1", "ARG2")]
            in_list = index and self._in_list(arguments[index - 1][1], begin)
            if not direct or in_list:
                role = direct[-1][2] if direct and in_list else "ARG1"
            elif direct == [(*arguments[index - 1][:2], "ARG1")] and arguments[index - 1][1] == begin:
                # "gives the baby a tumbler"
                self.claims[verb][self.claims[verb].index(direct[0])] = (*direct[0][:2], "ARG2")
                role = "ARG1"
            else:
                return
        self.claims[verb].append((begin, end, role))

    def _in_list(self, end: int, begin: int) -> bool:
        """Return whether two phrases are items of a list: only a comma, ``and`` or ``or`` is between them."""
        between = self.sentence.words[end:begin]
        return between in (["and"], ["or"]) or (not between and self.sentence.kinds[begin] != DETERMINER)

    def _reaches(self, verb: int, place: int) -> bool:
        """Return whether a verb and a later word are in the same clause."""
        words = self.sentence.words
        if any(word in SUBORDINATING for word in words[verb + 1 : place]):
            return False
        next_verb = next((other for other in self.verbs if other > verb), None)
        if next_verb is None or next_verb < place:
            return True
        # "... sits in a chair and the dog barks": a phrase between "and" and a finite verb is the subject of that verb.
        between = words[verb + 1 : place]
        finite = not words[next_verb].endswith("ing") or BE in self.sentence.kinds[place:next_verb]
        return not (finite and "and" in between and "and" not in words[place:next_verb])

    def _passive(self, verb: int) -> bool:
        sentence, place = self.sentence, verb - 1
        while sentence.kind(place) == ADVERB:
            place -= 1
        form = sentence.words[verb]
        passive = sentence.kind(place) == BE or (place >= 0 and sentence.words[place] in ("gets", "got", "get"))
        passive = passive or (sentence.kind(place) == NOUN and sentence.words[verb + 1 : verb + 2] == ["by"])
        return passive and not form.endswith("ing") and sentence.kinds[verb] == VERB

    def _subject(self, arguments: list[tuple[int, int, str]], verb: int) -> None:
        """Assign the subject phrases of a verb: ARG1 for a passive verb or the copula, otherwise ARG0."""
        role = "ARG1" if self._passive(verb) or self.sentence.kinds[verb] == BE else "ARG0"
        for begin, end in self._subject_phrases(arguments, verb):
            self.claims[verb].append((begin, end, role))

    def _subject_phrases(self, arguments: list[tuple[int, int, str]], verb: int) -> Iterator[tuple[int, int]]:
        sentence = self.sentence
        preceding = [argument for argument in arguments if argument[1] <= verb]
        if not preceding:
            return
        participle = sentence.words[verb].endswith("ing") and sentence.kind(verb - 1) in (NOUN, PRONOUN)
        nearest = preceding[-1]
        if participle and not nearest[2] and nearest[1] == verb:
            yield nearest[:2]
            return
        clause = sentence.clause(verb)
        in_clause = [argument for argument in preceding if argument[0] >= clause.start] or preceding
        objects = {claim[:2] for other in self.verbs if other < verb for claim in self.claims[other]}
        free = [argument for argument in in_clause if not argument[2] and argument[:2] not in objects]
        if not free:
            # Use the subject of the previous verb: "picks up", "starts flipping".
            earlier = [other for other in self.verbs if other < verb]
            if earlier:
                yield from ((begin, end) for begin, end, role in self.claims[earlier[-1]] if role == "ARG0")
            return
        last = free[-1]
        yield last[:2]
        index = arguments.index(last)
        while (
            index
            and arguments[index - 1] in free
            and sentence.words[arguments[index - 1][1] : arguments[index][0]] == ["and"]
        ):
            index -= 1
            yield arguments[index][:2]
