"""Who does what to whom in a caption: its role graph, by rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .parsing import ADVERB, BE, DETERMINER, NOUN, PREPOSITION, PRONOUN, SUBORDINATING, TO, VERB, Sentence, word_set

PLACE = word_set("in on at over under near behind between beside inside outside above below beneath upon off")
PATH = word_set("to from into onto through across along around towards toward up down out past")
TIMES = word_set("morning night day evening afternoon time moment end beginning minutes seconds hours")


def role_graph(caption: str) -> list[Any]:
    """``[nodes, edges]`` as HGR's files have them: verbs, and their arguments with the roles of PropBank.

    Phrases that no verb claims are nodes of the role ``NOUN``.
    """
    sentence = Sentence(caption)
    return _Graph(sentence, sentence.verbs(), sentence.phrases()).made()


def role_of(preposition: str, last: str) -> str:
    """The role of a phrase after a preposition, whose last word is ``last``."""
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
    """``[nodes, edges]`` of a caption.

    Args:
        claims: for the place of each verb its arguments, (begin, end, role).
        phrases: [begin, end) of all phrases; those within no argument become nodes of the role ``NOUN``.
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
    claimed = {(begin, end) for found in claims.values() for begin, end, _ in found}
    for begin, end in phrases:
        if not any(first <= begin and end <= last for first, last in claimed):
            name(begin, end, "NOUN")
    return [nodes, edges]


@dataclass
class _Graph:
    """Verbs and phrases of a sentence joined by roles."""

    sentence: Sentence
    verbs: list[int]
    phrases: list[tuple[int, int]]
    claims: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict)

    def made(self) -> list[Any]:
        arguments = self._joined()
        self.claims = {verb: [] for verb in self.verbs}
        for index, (begin, end, preposition) in enumerate(arguments):
            self._claim(arguments, index, begin, end, preposition)
        for verb in self.verbs:
            self._subject(arguments, verb)
        return graph_of(self.sentence.spoken, self.claims, [(begin, end) for begin, end, _ in arguments])

    def _joined(self) -> list[tuple[int, int, str]]:
        """Phrases with the preposition before them, ``of`` joined to the phrase before: (begin, end, preposition)."""
        words, found = self.sentence.words, []
        for begin, end in self.phrases:
            before = words[begin - 1] if begin and self.sentence.kind(begin - 1) in (PREPOSITION, TO) else ""
            if before and self.sentence.closes[begin - 1]:
                before = ""
            if before == "of" and found and found[-1][1] == begin - 1:
                found[-1] = (found[-1][0], end, found[-1][2])
            else:
                found.append((begin - bool(before), end, before))
        return found

    def _claim(self, arguments: list[tuple[int, int, str]], index: int, begin: int, end: int, preposition: str) -> None:
        """Gives a phrase after a verb to that verb."""
        verb = max((verb for verb in self.verbs if verb < begin), default=None)
        if verb is None or not self._reaches(verb, begin):
            return
        if preposition:
            by_whom = preposition == "by" and self._passive(verb)
            role = "ARG0" if by_whom else role_of(preposition, self.sentence.words[end - 1])
        elif self._passive(verb):
            return
        else:
            direct = [claim for claim in self.claims[verb] if claim[2] in ("ARG1", "ARG2")]
            listed = index and self._listed(arguments[index - 1][1], begin)
            if not direct or listed:
                role = direct[-1][2] if direct and listed else "ARG1"
            elif direct == [(*arguments[index - 1][:2], "ARG1")] and arguments[index - 1][1] == begin:
                # "gives the baby a tumbler"
                self.claims[verb][self.claims[verb].index(direct[0])] = (*direct[0][:2], "ARG2")
                role = "ARG1"
            else:
                return
        self.claims[verb].append((begin, end, role))

    def _listed(self, end: int, begin: int) -> bool:
        """Whether between two phrases there is nothing but a comma, or ``and``."""
        between = self.sentence.words[end:begin]
        return between in (["and"], ["or"]) or (not between and self.sentence.kinds[begin] != DETERMINER)

    def _reaches(self, verb: int, place: int) -> bool:
        """Whether nothing ends a verb's clause before a word: a subordinating word, or the next clause's subject."""
        words = self.sentence.words
        if any(word in SUBORDINATING for word in words[verb + 1 : place]):
            return False
        later = next((other for other in self.verbs if other > verb), None)
        if later is None or later < place:
            return True
        # "... sits in a chair and the dog barks": what stands before a later finite verb, after "and", is its subject.
        between = words[verb + 1 : place]
        finite = not words[later].endswith("ing") or BE in self.sentence.kinds[place:later]
        return not (finite and "and" in between and "and" not in words[place:later])

    def _passive(self, verb: int) -> bool:
        sentence, place = self.sentence, verb - 1
        while sentence.kind(place) == ADVERB:
            place -= 1
        form = sentence.words[verb]
        helped = sentence.kind(place) == BE or (place >= 0 and sentence.words[place] in ("gets", "got", "get"))
        helped = helped or (sentence.kind(place) == NOUN and sentence.words[verb + 1 : verb + 2] == ["by"])
        return helped and not form.endswith("ing") and sentence.kinds[verb] == VERB

    def _subject(self, arguments: list[tuple[int, int, str]], verb: int) -> None:
        """The phrases before a verb that do it; of a passive, that it is done to."""
        role = "ARG1" if self._passive(verb) or self.sentence.kinds[verb] == BE else "ARG0"
        for begin, end in self._doers(arguments, verb):
            self.claims[verb].append((begin, end, role))

    def _doers(self, arguments: list[tuple[int, int, str]], verb: int) -> Iterator[tuple[int, int]]:
        sentence = self.sentence
        before = [argument for argument in arguments if argument[1] <= verb]
        if not before:
            return
        participle = sentence.words[verb].endswith("ing") and sentence.kind(verb - 1) in (NOUN, PRONOUN)
        nearest = before[-1]
        if participle and not nearest[2] and nearest[1] == verb:
            yield nearest[:2]
            return
        inside = sentence.clause(verb)
        here = [argument for argument in before if argument[0] >= inside.start] or before
        objects = {claim[:2] for other in self.verbs if other < verb for claim in self.claims[other]}
        free = [argument for argument in here if not argument[2] and argument[:2] not in objects]
        if not free:
            # The subject of the verb before: "picks up", "starts flipping".
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
