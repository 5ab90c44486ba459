"""The ``model`` section of a configuration: a class a model, told apart by ``name``; every open choice an option."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A section of a configuration. Unknown keys are errors, and no value is turned into another type silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# YAML, which reads --set, and people write off for what is called off here.
Off = BeforeValidator(lambda value: "off" if value is False else value)

# What pairs of a batch are that have their clip or a caption in common.
Relation = Literal["positive", "excused", "negative"]
# Weights by the name of a score; a number alone is that of the fused score.
Weights = Annotated[dict[str, float], BeforeValidator(lambda x: {"fused": x} if isinstance(x, int | float) else x)]


class Objective(Section):
    """What training minimises: the sum of the terms that have a weight. Every term can be had with every model."""

    hinge: Weights = Field(
        {},
        description="weights of the hinge with a margin, by score: fused, the name of a level, or levels for each by "
        "its weight in the fused score; a number is that of fused. To give one of hinge and contrastive replaces the "
        "model's own choice of both",
    )
    margin: float = Field(0.2, ge=0, description="of the hinge")
    negatives: Literal["hardest", "all"] | int = Field(
        "hardest", description="of the hinge: the hardest in the batch, the sum over all, or the mean of so many"
    )
    contrastive: Weights = Field({}, description="weights of CLIP's cross-entropy over the batch, as of hinge")
    temperature: float = Field(0.05, gt=0, description="of the cross-entropy, to begin with; each score learns its own")
    several: Literal["mean", "sum"] = Field(
        "mean", description="of several positives in the cross-entropy: mean of logs, log of the sum"
    )
    same_clip: Relation = Field(
        "excused", description="pairs of one clip: positive, negative as in HGR, or excused: neither"
    )
    same_caption: Relation = Field("excused", description="pairs of other clips with the same caption; as of same_clip")
    denoise: Annotated[Literal["off", "or", "and"], Off] = Field(
        "off",
        description="make positives of clips that are as near as two draws of one clip's rows: where either of two "
        "clips finds the other (or), or both (and)",
    )
    denoise_slack: float = Field(
        0.0, ge=0, le=2, description="how much less near, as a cosine, another clip may be than a clip's own draws"
    )
    divergence: float = Field(0.0, ge=0, description="weight of the KL divergence between the two sides of a pair")
    divergence_way: Literal["symmetric", "one_way"] = Field(
        "symmetric", description="the mean of both ways, or of text from video alone"
    )
    divergence_of: Literal["vectors", "concepts"] = "vectors"
    divergence_temperature: float = Field(1.0, gt=0, description="tau, of the softmax over a vector's numbers")
    concepts: float = Field(
        0.0, ge=0, description="weight of the cross-entropy of concepts (nouns, verbs, pairs), each level and side"
    )
    focus: float = Field(2.0, ge=0, description="gamma of the focal loss of concepts; 0: plain cross-entropy")
    balance: float = Field(0.25, gt=0, lt=1, description="alpha of the focal loss, the weight of what is there")
    entities: int = Field(1024, ge=1, description="most frequent nouns that are concepts")
    actions: int = Field(512, ge=1, description="most frequent verbs")
    relations: int = Field(512, ge=1, description="most frequent pairs of both")
    adversary: Annotated[Literal["off", "reversal", "alternating", "wasserstein"], Off] = Field(
        "off", description="networks that tell videos from texts, which the encoders learn to prevent, and how"
    )
    adversary_weight: float = Field(0.03, ge=0, description="lambda")
    adversary_hidden: int = Field(512, ge=2, description="width of these networks")
    adversary_lr: float = Field(2e-4, gt=0, description="of networks that step by themselves: all but reversal")

    @field_validator("negatives")
    @classmethod
    def _some(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("of the hardest at least 1 counts")
        return value


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a model is built for, kept in its checkpoint.

    Attributes:
        widths: length of the features of each stream, and under ``text`` of a token's or word's.
        objects: those of the streams whose rows are objects.
        words: size of the vocabulary, or 0 where captions come as token features alone.
        sentence: length of a caption's own vector in the stream of text, or 0 where it has none.
        tower: configuration of a CLIP text tower that is trained with the model, as transformers has it.
        concepts: how many concepts of each kind there are, for models that are taught some.
    """

    widths: Mapping[str, int]
    objects: tuple[str, ...] = ()
    words: int = 0
    sentence: int = 0
    tower: Mapping[str, Any] = field(default_factory=dict)
    concepts: Mapping[str, int] = field(default_factory=dict)


class ModelOptions(Section):
    """What the sections of all models have.

    Attributes:
        takes_objects: whether ``streams`` may name streams of objects.
        takes_words: whether ``text`` may be ``words``.
        needs_graphs: whether captions come with their role graphs.
        own: of the other sections what the model prefers where a configuration leaves it open.
    """

    takes_objects: ClassVar[bool] = True
    takes_words: ClassVar[bool] = True
    needs_graphs: ClassVar[bool] = False
    own: ClassVar[Mapping[str, Mapping[str, Any]]] = {"objective": {"hinge": 1.0}}

    streams: list[str] = Field([], description="streams of clips, frames and objects; empty: all of clips and frames")
    text: str = Field(
        "",
        description="the stream of text; empty: the only one in the store; words: word vectors learned here; "
        "tower:MODEL: a text model of transformers (a folder, a name on the hub, minilm) that is trained along",
    )
    word_dim: int = Field(300, ge=1, description="of the word vectors, with text=words and no word_vectors")
    word_vectors: str = Field(
        "",
        description="what word vectors begin with: .npz (words, vectors), .txt as GloVe's, or a text model, whose "
        "table of tokens is read; empty: drawn",
    )
    tower_lr: float = Field(1e-3, ge=0, description="learning rate of the tower, as a share of the others'")
    tower_layers: int | None = Field(
        None, ge=0, description="so many of the tower's last layers learn; others stay as they are; None: all learn"
    )
    dim: int = Field(1024, ge=2, description="of the joint spaces")
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def wants_objects(self) -> bool:
        """Whether the model has a part for objects alone, in the stream ``objects``."""
        return False

    @property
    def wants_streams(self) -> bool:
        """Whether the model reads ``streams``."""
        return True

    @property
    def video_streams(self) -> list[str]:
        """The streams of videos that the model reads, once they are chosen."""
        return self.streams

    @property
    def text_stream(self) -> str:
        """The stream of text that the model reads, once it is chosen; empty where it reads none."""
        return "" if self.text == "words" or self.tower else self.text

    @property
    def learns_words_unless_told(self) -> bool:
        """Whether words may be learned where a store has no text: the model can, and the user says nothing."""
        return self.takes_words and "text" not in self.model_fields_set

    @property
    def tower(self) -> str:
        """A text model, by folder or name, that is trained with the model; empty for none."""
        return self.text.removeprefix("tower:") if self.text.startswith("tower:") else ""

    @property
    def makes_words(self) -> bool:
        """Whether tokens of a stream or of a tower are averaged to words, of which phrases are made."""
        return self.needs_graphs and self.text != "words"

    @property
    def graph_sizes(self) -> dict[str, Any]:
        """How much of a role graph becomes tensors, as of ``graph_tensors``."""
        return {}

    @property
    def has_concepts(self) -> bool:
        """Whether the model tells concepts of captions by itself."""
        return False

    @property
    def needs_words(self) -> bool:
        """Whether the training captions' words are learned."""
        return self.text == "words"


class WithBag(ModelOptions):
    """Models that may have a bag of words beside token features."""

    text_bag: bool | Literal["auto"] = Field(
        False,
        description="beside a caption's features a bag of its words, with vectors learned here, as Dual Encoding has "
        "one; auto: where a stream of text is read",
    )

    @property
    def needs_words(self) -> bool:
        return bool(self.text_bag) or super().needs_words

    @property
    def learns_words_unless_told(self) -> bool:
        return super().learns_words_unless_told and self.text_bag is not True

    @model_validator(mode="after")
    def _no_bag_of_words_alone(self) -> WithBag:
        if self.text_bag is True and (self.text == "words" or self.tower):
            raise ValueError(f"text_bag stands beside a stream's token features: with text={self.text} leave it off")
        return self


class ObjectGraph(Section):
    """The graph over the objects of a clip."""

    graph: Literal["none", "spatial", "temporal", "both", "joint"] = Field(
        "both", description="edges within frames, between neighbouring frames, both, or one graph over all objects"
    )
    graph_dim: int = Field(1024, ge=1, description="d_g, of the graph's nodes")
    graphs: int = Field(16, ge=1, description="G, graphs side by side")
    graph_layers: int = Field(1, ge=0)
    key_dim: int = Field(256, ge=1, description="d_k, of the edges' projections")
    distance: float | None = Field(
        0.2, gt=0, description="mu: spatial edges reach this share of the frame's width; None: any distance"
    )
    geometry: bool = Field(True, description="nodes and edges know the boxes")


class AMENet(WithBag, ObjectGraph):
    """AME-Net. Defaults are those that did best over several sets; docs/amenet.md says how they were chosen."""

    takes_objects: ClassVar[bool] = False
    own: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "objective": {"contrastive": {"fused": 1.0, "levels": 0.5}, "temperature": 0.1},
        "data": {"batch_size": None, "similar": None},
        "train": {
            "optimizer": "adamw",
            "lr": None,
            "weight_decay": 1e-2,
            "schedule": "cosine",
            "warmup": None,
            "val_every": None,
            "keep": None,
        },
    }

    name: Literal["amenet", "global"] = Field("amenet", description="amenet, or global: the baseline without relations")
    relation_branch: bool = Field(True, description="over the objects")
    global_branch: bool = Field(True, description="over clip and frame features")
    objects: str = Field("", description="the stream of objects; empty: the only one in the store")
    dim: int = Field(512, ge=2, description="of the joint spaces")
    dropout: float = Field(0.4, ge=0, lt=1, description="of the global space")
    pooling: Literal["mean", "attention"] = Field("mean", description="of clip and frame features, row by row")
    scaling: Literal["auto", "layernorm", "standard", "logit"] = Field(
        "auto",
        description="of the global branch's features; standard: each number over the training clips; logit: that of "
        "the log-odds, for features that are probabilities; auto: logit for these, else standard",
    )
    hidden: int = Field(
        1024, ge=0, description="width of a hidden layer over the global space's features, of both sides; 0: none"
    )
    sequence: Literal["none", "gru", "transformer"] = Field(
        "none", description="between a stream's rows, before pooling"
    )
    text_sequence: Literal["none", "gru", "transformer"] = Field(
        "gru", description="between tokens, in the relation space: who does it to whom is in the order of the words"
    )
    text_bag: bool | Literal["auto"] = Field("auto", description="as of dual_encoding")
    bag_dropout: float = Field(0.5, ge=0, lt=1, description="of the words of that bag")
    weight: float = Field(0.5, ge=0, le=1, description="w, of the relation space in the score")
    relation_dropout: float = Field(0.1, ge=0, lt=1, description="of the relation space")
    graph_dim: int = Field(96, ge=1, description="d_g, of the graph's nodes")
    graphs: int = Field(2, ge=1, description="G, graphs side by side")
    graph_layers: int = Field(2, ge=0, description="two: an object knows how it moves before the others hear of it")
    key_dim: int = Field(32, ge=1, description="d_k, of the edges' projections")
    distance: float | None = Field(
        None, gt=0, description="mu: spatial edges reach this share of the frame's width; None: any distance"
    )
    hubs: int = Field(
        10,
        ge=0,
        description="k: a score counts by how much it is above the mean of the k nearest training captions and clips, "
        "so that what is near to everything comes first nowhere (CSLS); 0: scores as they are",
    )

    @property
    def wants_objects(self) -> bool:
        return self.relation_branch

    @property
    def wants_streams(self) -> bool:
        return self.global_branch

    @property
    def video_streams(self) -> list[str]:
        objects = [self.objects] if self.relation_branch else []
        return list(dict.fromkeys([*objects, *(self.streams if self.global_branch else [])]))

    @model_validator(mode="before")
    @classmethod
    def _baseline(cls, values: Any) -> Any:
        """The baseline is the global branch alone: means and linear projections."""
        if isinstance(values, dict) and values.get("name") == "global":
            plain = {"hidden": 0, "text_bag": False, "hubs": 0}
            return plain | values | {"relation_branch": False, "global_branch": True}
        return values

    @model_validator(mode="after")
    def _possible(self) -> AMENet:
        if not (self.relation_branch or self.global_branch):
            raise ValueError("at least one of relation_branch and global_branch must be on")
        return self


class RoleGraphs(ModelOptions, ObjectGraph):
    """What HGR and what builds on it have: a caption as a graph of its verbs and their arguments."""

    needs_graphs: ClassVar[bool] = True

    text: str = Field(
        "words",
        description="a phrase is made of its words; words: vectors learned here; the name of a stream of text, or "
        "tower:MODEL as of amenet: its tokens, averaged to words",
    )
    tokenizer: str = Field(
        "", description="the text model of that stream, for its tokenizer; empty: minilm, or what the store names"
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="of the video")
    text_dropout: float = Field(0.2, ge=0, lt=1, description="of the word vectors")
    text_layers: int = Field(1, ge=1, description="of the GRU over the words")
    scaling: Literal["none", "layernorm", "standard", "logit"] = Field(
        "none",
        description="of clip and frame features, before they are projected; standard: each number over the training "
        "clips; logit: that of the log-odds, for features that are probabilities",
    )
    role_layers: int = Field(1, ge=0, description="of the graph over a caption's phrases; 0: no graph")
    role_dropout: float = Field(0.5, ge=0, lt=1)
    verbs: int = Field(4, ge=1, description="a caption's verbs at most")
    nouns: int = Field(6, ge=1, description="a caption's other phrases at most")
    fusion: Literal["embed", "sim"] = Field(
        "embed",
        description="rows a phrase attends to are averaged before they are compared to it, or their cosines are (sim)",
    )
    sharpness: float = Field(4.0, gt=0, description="lambda, of that attention")

    @property
    def graph_sizes(self) -> dict[str, Any]:
        return {"verbs": self.verbs, "nouns": self.nouns}


class HGR(RoleGraphs):
    """HGR; defaults are the released settings. Streams of objects and their graph are ours: the paper has frames."""

    name: Literal["hgr"] = "hgr"
    levels: list[Literal["sent", "verb", "noun"]] = Field(
        ["sent", "verb", "noun"], min_length=1, description="whose scores are averaged"
    )


class MCSAN(RoleGraphs):
    """MCSAN, reconstructed. Defaults are docs/models.md's: HGR's and HANet's; the paper's own are not known."""

    # Features and concepts are ranked apart, as HANet does.
    own: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "objective": {
            "hinge": {"features": 1.0, "concepts": 0.1},
            "divergence": 0.1,
            # With HANet's 0.01 no concept is learned, and ranking is no better: docs/models.md has the figures.
            "concepts": 10.0,
        }
    }

    name: Literal["mcsan"] = "mcsan"
    levels: list[Literal["global", "entity", "action", "relationship"]] = Field(
        ["global", "entity", "action", "relationship"], min_length=1, description="whose scores are averaged"
    )
    relation: Literal["pair", "triple"] = Field(
        "pair", description="a relationship is a verb and an argument, or a verb with both its ARG0 and ARG1"
    )
    relations: int = Field(8, ge=1, description="N_r, a caption's relationships at most")
    attributes: Annotated[Literal["off", "separate", "shared"], Off] = Field(
        "shared", description="the projection to concepts: one for both sides, one each, none"
    )
    attribute_norm: Literal["shared", "separate"] = Field(
        "shared", description="statistics of its batch normalisation, of both sides or of each"
    )
    attribute_score: bool = Field(True, description="concepts count half of the score")

    @property
    def has_concepts(self) -> bool:
        return self.attributes != "off"

    @property
    def graph_sizes(self) -> dict[str, Any]:
        sizes = {"verbs": self.verbs, "nouns": self.nouns}
        return sizes | {"relations": self.relations, "triples": self.relation == "triple"}


class CLIPMean(ModelOptions):
    """Mean-pooled CLIP: nothing to learn but the temperature."""

    takes_objects: ClassVar[bool] = False
    takes_words: ClassVar[bool] = False
    own: ClassVar[Mapping[str, Mapping[str, Any]]] = {"objective": {"contrastive": 1.0}}

    name: Literal["clip_mean"] = "clip_mean"
    text: str = Field(
        "", description="a stream of text with sentences in CLIP's space; empty: the only one in the store"
    )

    @field_validator("text")
    @classmethod
    def _of_the_store(cls, value: str) -> str:
        if value == "words" or value.startswith("tower:"):
            raise ValueError("clip_mean learns nothing: it reads a stream of text")
        return value


class DualEncoding(WithBag):
    """Dual Encoding; defaults are the paper's, but for word vectors of 300 numbers learned here."""

    takes_objects: ClassVar[bool] = False

    name: Literal["dual_encoding"] = "dual_encoding"
    dim: int = Field(2048, ge=2, description="of the joint space")
    dropout: float = Field(0.2, ge=0, lt=1)
    rnn_dim: int = Field(512, ge=1, description="of the GRU, each direction")
    filters: int = Field(512, ge=1, description="of each convolution")
    scaling: Literal["none", "layernorm", "standard", "logit"] = Field(
        "none", description="of the features; as of amenet, and none"
    )


class HCMI(ModelOptions, ObjectGraph):
    """HCMI, on features of CLIP or others. Defaults are docs/models.md's; the paper's own numbers are not known."""

    own: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "objective": {
            "contrastive": {"levels": 3.0},
            "hinge": {"video_sentence": 0.5},
            "denoise": "or",
        }
    }

    name: Literal["hcmi"] = "hcmi"
    dim: int = Field(512, ge=2, description="of the joint space; with project=false that of the features")
    project: bool = Field(True, description="a linear map before all; CLIP's own features need none")
    scaling: Literal["none", "layernorm", "standard", "logit"] = Field(
        "none", description="of the features, before they are projected; as of amenet, and none"
    )
    levels: list[Literal["frame_word", "clip_phrase", "video_sentence"]] = Field(
        ["frame_word", "clip_phrase", "video_sentence"], min_length=1, description="whose scores and losses count"
    )
    aggregation: Literal["assign", "queries", "clusters"] = Field(
        "assign", description="how tokens are grouped: the readings A, B and C of docs/models.md"
    )
    clips: int = Field(4, ge=1, description="N_c, groups of frames")
    phrases: int = Field(4, ge=1, description="N_p, groups of words")
    token_weights: Literal["learned", "uniform"] = Field("learned", description="of tokens when they are compared")
    temporal_layers: int = Field(0, ge=0, description="of a transformer over the frames, before all")


Model = Annotated[AMENet | HGR | MCSAN | HCMI | CLIPMean | DualEncoding, Field(discriminator="name")]
SECTIONS: dict[str, type[ModelOptions]] = {
    "amenet": AMENet,
    "global": AMENet,
    "hgr": HGR,
    "mcsan": MCSAN,
    "hcmi": HCMI,
    "dual_encoding": DualEncoding,
    "clip_mean": CLIPMean,
}
