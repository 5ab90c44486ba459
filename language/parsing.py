"""Find the verbs and noun phrases of captions by rules. Nothing is downloaded.

TextBlob tags the parts of speech, and LemmInflect provides lemmas; both packages contain their lexicons. The rules are
made for captions: short clauses in the present tense, imperatives of recipes, participles instead of sentences.
docs/concepts/hgr.md reports their accuracy.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from ..errors import needs

# The word classes of the rules.
DETERMINER, PRONOUN, NOUN, ADJECTIVE, NUMBER, ADVERB = "D", "P", "N", "J", "C", "R"
VERB, BE, AUXILIARY = "V", "B", "X"
PREPOSITION, TO, CONJUNCTION, OTHER = "I", "T", "K", "O"


def word_set(words: str) -> frozenset[str]:
    """Return the words of a text as a set."""
    return frozenset(words.split())


def _class_of_word(**classes: str) -> dict[str, str]:
    return {word: kind for kind, words in classes.items() for word in words.split()}


# Function words: their class does not depend on the context.
CLOSED = _class_of_word(
    D="a an the this these those some any no every each both all another his her its their my your our several many",
    P="i you he she it we they him them me us someone somebody something anyone everyone everything nothing himself "
    "herself itself themselves who",
    B="is are was were be been being am isn't aren't wasn't 's",
    X="can could will would may might should must have has had do does did having",
    I="in on at of from into onto with without by for about over under through across along around near behind between "
    "beside inside outside against during towards toward upon off up down out like regarding including above below "
    "beneath past",
    T="to",
    K="and or but then while as when once till until because if that which where after before so than",
    R="not very also together away there here too just slowly quickly again back",
)
# Words that the lexicon has as nouns and verbs, but captions use only as nouns.
NEVER_VERBS = word_set("man baby dog cat kid boy girl child monkey horse person bird fish group team water")
# Words that begin a new clause.
SUBORDINATING = word_set("while as when once till until because if that which where after before so who")
TAGS = {"NN": NOUN, "JJ": ADJECTIVE, "CD": NUMBER, "RB": ADVERB, "VB": VERB, "IN": PREPOSITION, "PR": PRONOUN}
TAGS |= {"DT": DETERMINER, "RP": PREPOSITION, "TO": TO, "CC": CONJUNCTION, "MD": AUXILIARY, "WR": CONJUNCTION}


@dataclass(frozen=True)
class Analysis:
    """The verbs and noun phrases of a caption. Positions refer to ``caption.split()``.

    Attributes:
        verbs: positions of full verbs, including the copula, without auxiliaries.
        phrases: base noun phrases, [begin, end): a determiner, modifiers and the noun, or a pronoun.
        lemmas: base forms of the verbs and of the last words of the phrases, by position.
    """

    verbs: tuple[int, ...]
    phrases: tuple[tuple[int, int], ...]
    lemmas: dict[int, str] = field(hash=False)


@functools.cache
def _forms(word: str) -> dict[str, tuple[str, ...]]:
    """Return the base forms of a word by part of speech, from LemmInflect's lexicon."""
    with needs("text", "the parser of captions"):
        import lemminflect

    return lemminflect.getAllLemmas(word)


def lemma(word: str, kind: str) -> str:
    """Return the base form of a word as a ``VERB`` or a ``NOUN``; the word itself if the lexicon does not have it."""
    return _forms(word).get(kind, (word,))[0]


def analyse(caption: str) -> Analysis:
    """Return the verbs and noun phrases of a caption. Never fails, but the results are only useful for English."""
    sentence = Sentence(caption)
    verbs, phrases = sentence.verbs(), sentence.phrases()
    lemmas = {place: lemma(sentence.words[place], "VERB") for place in verbs}
    lemmas |= {end - 1: lemma(sentence.words[end - 1], "NOUN") for _, end in phrases}
    return Analysis(tuple(verbs), tuple(phrases), lemmas)


class Sentence:
    """The words of a caption and their classes.

    Attributes:
        spoken: the words as in the caption.
        words: the words in lower case and without punctuation.
        closes: whether a punctuation mark follows the word.
        kinds: class of each word.
    """

    def __init__(self, caption: str) -> None:
        self.spoken = caption.split()
        self.words = [word.lower().strip('.,;:!?"()[]') or "," for word in self.spoken]
        self.closes = [word[-1] in ".,;:!?" for word in self.spoken]
        self.kinds = [
            CLOSED.get(word, TAGS.get(tag[:2], OTHER)) for word, tag in zip(self.words, _tags(self.words), strict=True)
        ]
        self._correct()

    def kind(self, place: int) -> str:
        """Return the class of a word; ``""`` for a position outside the caption."""
        return self.kinds[place] if 0 <= place < len(self.kinds) else ""

    def can(self, place: int, part: str) -> bool:
        """Return whether a word can be a form of a ``VERB`` or a ``NOUN``."""
        return 0 <= place < len(self.words) and part in _forms(self.words[place])

    def base(self, place: int) -> bool:
        """Return whether a word can be the base form of a verb."""
        return self.can(place, "VERB") and self.words[place] in _forms(self.words[place])["VERB"]

    def third(self, place: int) -> bool:
        """Return whether a word can be a verb in the third person."""
        return self.can(place, "VERB") and self.words[place].endswith("s") and not self.base(place)

    def starts(self, place: int) -> bool:
        """Return whether a clause can begin at this word."""
        return place == 0 or self.closes[place - 1] or self.kind(place - 1) == CONJUNCTION

    def clause(self, place: int) -> range:
        """Return the range of the clause that contains a word. Conjunctions and punctuation separate clauses."""
        begin, end = place, place + 1
        while begin > 0 and not self.closes[begin - 1] and self.words[begin - 1] not in SUBORDINATING:
            begin -= 1
        while end < len(self.words) and not self.closes[end - 1] and self.words[end] not in SUBORDINATING:
            end += 1
        return range(begin, end)

    def finite(self, place: int) -> bool:
        """Return whether the clause of a word has another finite verb."""
        for other in self.clause(place):
            if other == place:
                continue
            if self.kinds[other] in (BE, AUXILIARY):
                return True
            if self.kinds[other] == VERB and not self.words[other].endswith("ing"):
                return True
        return False

    def _correct(self) -> None:
        """Correct the typical errors of the tagger in captions."""
        self._small_words()
        self._participles()
        self._modifiers()
        self._imperatives()
        self._third_person()
        self._plural_subjects()
        self._after_to()
        if not {VERB, BE} & set(self.kinds):
            self._find_one_verb()
        for place, word in enumerate(self.words):
            if word == "her" and self.kind(place + 1) not in (NOUN, ADJECTIVE, NUMBER):
                self.kinds[place] = PRONOUN
            if word in ("another", "all", "both", "this", "some") and self.kind(place + 1) in (VERB, BE, AUXILIARY):
                self.kinds[place] = PRONOUN
            if word == "using":  # introduces an instrument: "cut the tofu using a knife"
                self.kinds[place] = VERB

    def _small_words(self) -> None:
        for place, word in enumerate(self.words):
            if word.isdigit():
                self.kinds[place] = NUMBER
            if (
                word == "front"
                and self.words[max(0, place - 1)] == "in"
                and self.words[place + 1 : place + 2] == ["of"]
            ):
                self.kinds[place] = PREPOSITION
            if word in ("left", "right"):
                ends = self.kind(place + 1) in ("", CONJUNCTION, TO) or self.closes[place]
                named = self.kind(place - 1) in (DETERMINER, ADJECTIVE, PREPOSITION, TO)
                if ends:
                    self.kinds[place] = NOUN if named else ADVERB
            if word == "back" and self.kind(place - 1) in (DETERMINER, ADJECTIVE):
                self.kinds[place] = ADJECTIVE if self.kind(place + 1) == NOUN else NOUN

    def _participles(self) -> None:
        """Correct participles in -ing that the tagger takes for nouns."""
        for place, word in enumerate(self.words):
            if not place or not word.endswith("ing") or self.kinds[place] != NOUN or not self.can(place, "VERB"):
                continue
            before = self.kind(place - 1) if self.kind(place - 1) != ADVERB else self.kind(place - 2)
            follows = self.kind(place + 1)
            if before == BE or (
                before in (NOUN, PRONOUN) and follows in (DETERMINER, PRONOUN, PREPOSITION, TO, ADVERB)
            ):
                self.kinds[place] = VERB

    def _modifiers(self) -> None:
        """Correct participles and other verb forms inside noun phrases."""
        for place in range(len(self.words) - 1, -1, -1):
            word, before, after = self.words[place], self.kind(place - 1), self.kind(place + 1)
            if word in CLOSED or (self.closes[place - 1] and place):
                continue
            inside = before in (DETERMINER, NUMBER) or (before == ADJECTIVE and place)
            leads = after in (NOUN, ADJECTIVE) and not self.closes[place]
            if self.kinds[place] == VERB and inside:
                if leads and (word.endswith("ing") or not self.base(place)):
                    self.kinds[place] = ADJECTIVE
                elif self.can(place, "NOUN"):
                    self.kinds[place] = NOUN
            elif self.kinds[place] == VERB and leads and self._participle(place):
                # "add mixed herbs", "finely chopped onions"; but "a man peeled garlic".
                if before in (VERB, CONJUNCTION, ADVERB, PREPOSITION) or (before == TO):
                    self.kinds[place] = ADJECTIVE
            elif self.kinds[place] == VERB and word.endswith("ing") and leads and before == TO:
                self.kinds[place] = ADJECTIVE

    def _participle(self, place: int) -> bool:
        word = self.words[place]
        return self.can(place, "VERB") and word.endswith(("ed", "en")) and not self.base(place)

    def _third_person(self) -> None:
        """Correct verbs in the third person that the tagger takes for plurals: "man plays guitar"."""
        for place in range(1, len(self.words)):
            subject = self.kind(place - 1) in (NOUN, PRONOUN) and not self.closes[place - 1]
            if self.kinds[place] in (NOUN, ADJECTIVE, ADVERB) and subject and self.third(place):
                follows = self.kind(place + 1)
                ambiguous = PREPOSITION, TO, ADVERB, CONJUNCTION, NOUN, ADJECTIVE, ""
                fits = follows in (DETERMINER, PRONOUN) or (follows in ambiguous and self._first_phrase(place))
                if fits and not self.finite(place):
                    self.kinds[place] = VERB

    def _first_phrase(self, place: int) -> bool:
        """Return whether no verb and no preposition except ``of`` precedes a word in its clause."""
        preceding = range(self.clause(place).start, place)
        return all(self.words[other] == "of" or self.kinds[other] not in (VERB, PREPOSITION, TO) for other in preceding)

    def _imperatives(self) -> None:
        """Correct imperatives, base forms that begin a clause without another verb: "cut the tofu", "and place it"."""
        imperative = False
        for place in range(len(self.words)):
            word = self.words[place]
            if not self.starts(place) or (word in CLOSED and self.kinds[place] != VERB) or word in NEVER_VERBS:
                continue
            possible = self.base(place) or (self.kinds[place] == VERB and not _forms(self.words[place]))
            if not possible or (place and not imperative and self.words[place - 1] in SUBORDINATING):
                continue
            follows = self.kind(place + 1)
            takes = follows in (DETERMINER, PRONOUN, NUMBER, NOUN, ADJECTIVE, PREPOSITION, CONJUNCTION, ADVERB, "")
            if place == 0:
                if follows in (DETERMINER, PRONOUN) or (takes and not self._subject_of_another(place)):
                    self.kinds[place] = VERB
                    imperative = True
            elif imperative and (self.kinds[place] == VERB or follows in (DETERMINER, PRONOUN, PREPOSITION, "")):
                if self.kinds[place] != VERB and follows == "" and self.kind(place - 2) == NOUN:
                    continue  # "salt and pepper"
                self.kinds[place] = VERB
            elif self.kinds[place] == VERB and self.closes[place - 1]:
                imperative = True
        for place in range(1, len(self.words) if imperative else 0):
            # "add curry leaves": a verb in the third person needs a clause of its own.
            ends = self.kinds[place] == VERB and self.third(place) and self.can(place, "NOUN")
            if ends and self.kind(place - 1) == NOUN and self.clause(place).start == 0:
                self.kinds[place] = NOUN

    def _subject_of_another(self, place: int) -> bool:
        """Return whether a finite verb or a participle follows in the clause, before any conjunction."""
        for other in range(place + 1, self.clause(place).stop):
            if self.kinds[other] == CONJUNCTION:
                return False
            if self.kinds[other] in (BE, AUXILIARY, VERB):
                return self.kind(other - 1) not in (PREPOSITION, TO)
            if other == place + 1 and self.third(other) and self.kind(other + 1) in (DETERMINER, PRONOUN, PREPOSITION):
                return True
        return False

    def _ing(self, place: int) -> bool:
        return 0 <= place < len(self.words) and self.words[place].endswith("ing") and self.kinds[place] == VERB

    def _plural_subjects(self) -> None:
        """Correct base forms after a plural: "people ride horses"."""
        for place in range(1, len(self.words)):
            subject = self.words[place - 1]
            plural = subject in ("people", "men", "women", "children") or (
                subject.endswith("s") and self.can(place - 1, "NOUN") and self.kind(place - 1) == NOUN
            )
            plural = plural or subject in ("they", "we", "you", "i")
            if plural and not self.closes[place - 1] and self.kinds[place] in (NOUN, ADJECTIVE, ADVERB):
                follows = self.kind(place + 1)
                open_end = follows in (DETERMINER, PRONOUN, PREPOSITION, TO, ADVERB, NOUN, "")
                usable = self.base(place) and self.words[place] not in CLOSED
                if usable and open_end and self._first_phrase(place) and not self.finite(place):
                    self.kinds[place] = VERB

    def _after_to(self) -> None:
        """Correct infinitives: "to tear", but not "to water"."""
        for place in range(1, len(self.words)):
            if self.words[place - 1] != "to" or self.words[place] in CLOSED:
                continue
            if self.base(place) and (self.kinds[place] == VERB or self.kind(place + 1) in (DETERMINER, PRONOUN)):
                self.kinds[place] = VERB

    def _find_one_verb(self) -> None:
        """Set the likeliest verb of a caption without verbs: "a man shot his rifle", "two ferrets step out"."""
        for place in range(1, len(self.words)):
            word, follows = self.words[place], self.kind(place + 1)
            if self.kinds[place] not in (NOUN, ADJECTIVE) or not self.can(place, "VERB") or word in NEVER_VERBS:
                continue
            if self.closes[place - 1] or self.kind(place - 1) not in (NOUN, ADJECTIVE, PRONOUN):
                continue
            agrees = self.third(place) or (self.base(place) and self.words[place - 1].endswith("s"))
            has_object = follows in (DETERMINER, PRONOUN) or (word.endswith("ing") and follows == NOUN)
            if has_object or (agrees and follows in (PREPOSITION, TO, ADVERB) and self.words[place + 1] != "of"):
                self.kinds[place] = VERB
                return

    def verbs(self) -> list[int]:
        """Return the positions of full verbs."""
        verbs = []
        for place, kind in enumerate(self.kinds):
            if kind == VERB or (kind in (BE, AUXILIARY) and not self._is_auxiliary(place)):
                verbs.append(place)
        return verbs

    def _is_auxiliary(self, place: int) -> bool:
        """Return whether a form of be, have or do is the auxiliary of a following verb."""
        word = self.words[place]
        if self.kinds[place] == AUXILIARY and word not in ("have", "has", "had", "do", "does", "did", "having"):
            return True
        after = place + 1
        while self.kind(after) == ADVERB or self.words[after : after + 1] in (["been"], ["then"]):
            after += 1
        if self.kind(after) in (BE, AUXILIARY):
            return True
        if self.kind(after) != VERB:
            # "are stamp dancing"
            return self.kinds[place] == BE and self.kind(after) == NOUN and self._ing(after + 1)
        return True

    def phrases(self) -> list[tuple[int, int]]:
        """Return the base noun phrases, [begin, end)."""
        phrases: list[tuple[int, int]] = []
        place = 0
        while place < len(self.words):
            end = self._phrase_end(place)
            if end > place:
                phrases.append((place, end))
            place = max(end, place + 1)
        return phrases

    def _phrase_end(self, begin: int) -> int:
        """Return the end of the phrase that begins at a word; ``begin`` if there is none."""
        if self.kinds[begin] == PRONOUN:
            if self.words[begin] == "who":
                return begin
            return begin + 1
        if self.words[begin : begin + 2] == ["each", "other"]:
            return begin + 2
        place, nouns = begin, 0
        while place < len(self.words):
            kind = self.kinds[place]
            if kind == NOUN:
                nouns = place + 1
            elif (
                nouns
                or kind not in (DETERMINER, NUMBER, ADJECTIVE, ADVERB)
                or (kind == ADVERB and self.kind(place + 1) not in (ADJECTIVE, NUMBER))
                or (kind == DETERMINER and place > begin and self.kinds[place - 1] != DETERMINER)
            ):
                break
            place += 1
            if self.closes[place - 1]:
                break
        if nouns:
            return begin if self.kinds[begin] == ADVERB and begin + 1 == nouns else nouns
        if place > begin + 1 and self.kinds[place - 1] == ADJECTIVE and self.can(place - 1, "NOUN"):
            return place  # "a red convertible"
        without_noun = (
            self.kinds[begin] == DETERMINER and place > begin + 1 and self.kinds[place - 1] in (ADJECTIVE, NUMBER)
        )
        single_number = self.kinds[begin] == NUMBER and place == begin + 1
        return place if without_noun or single_number else begin


def _tags(words: list[str]) -> list[str]:
    with needs("text", "the parser of captions"):
        from textblob.en.taggers import PatternTagger

    tagged = PatternTagger().tag(" ".join(words), tokenize=False)
    if len(tagged) != len(words):  # the tagger splits or drops tokens such as a lone slash
        tagged = [(PatternTagger().tag(word, tokenize=False) or [(word, "NN")])[0] for word in words]
    return [tag for _, tag in tagged]
