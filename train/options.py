"""The options of the ``objective`` and ``model`` sections of a configuration; ``model.name`` selects the class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A section of a configuration. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


# YAML, which parses --set values, reads an unquoted off as False.
YamlOff = BeforeValidator(lambda value: "off" if value is False else value)

# How pairs of a batch that share a clip or a caption are treated.
Relation = Literal["positive", "excused", "negative"]
# Weights by the name of a score. A single number is the weight of the fused score.
Weights = Annotated[dict[str, float], BeforeValidator(lambda x: {"fused": x} if isinstance(x, int | float) else x)]


class ObjectiveOptions(Section):
    """The training objective: the weighted sum of the terms whose weight is not 0. Every model accepts every term."""

    hinge: Weights = Field(
        {},
        description="weights of the hinge loss by score: fused, the name of a level, or levels (each level, times its "
        "weight in the fused score); a single number is the weight of fused. Setting hinge or contrastive replaces "
        "the model's defaults for both",
    )
    margin: float = Field(0.2, ge=0, description="margin of the hinge loss")
    negatives: Literal["hardest", "all"] | int = Field(
        "hardest",
        description="negatives of the hinge loss: hardest in the batch, all (sum), or N (mean of the N hardest)",
    )
    contrastive: Weights = Field({}, description="weights of CLIP's cross-entropy over the batch; format as in hinge")
    temperature: float = Field(
        0.05, gt=0, description="initial temperature of the cross-entropy; each score learns its own"
    )
    several: Literal["mean", "sum"] = Field(
        "mean",
        description="how the cross-entropy combines several positives: mean of their log-probabilities, or log of the "
        "sum of their probabilities",
    )
    same_clip: Relation = Field(
        "excused",
        description="role of other pairs of the same clip: positive, negative (as in HGR) or excused (ignored)",
    )
    same_caption: Relation = Field(
        "excused", description="role of pairs of different clips with the same caption; values as in same_clip"
    )
    denoise: Annotated[Literal["off", "or", "and"], YamlOff] = Field(
        "off",
        description="treat another clip as a positive if it is as close as two random draws of the clip's own rows: "
        "for either clip of the pair (or), or for both (and)",
    )
    denoise_slack: float = Field(
        0.0, ge=0, le=2, description="by how much the cosine of another clip may be below that of a clip's own draws"
    )
    divergence: float = Field(
        0.0, ge=0, description="weight of the KL divergence between the video and the text of a pair"
    )
    divergence_way: Literal["symmetric", "one_way"] = Field(
        "symmetric", description="symmetric: mean of both directions; one_way: KL(video || text)"
    )
    divergence_of: Literal["vectors", "concepts"] = Field(
        "vectors", description="distributions that the divergence compares: softmax of the vectors, or concepts"
    )
    divergence_temperature: float = Field(
        1.0, gt=0, description="tau, the temperature of the softmax over a vector's components"
    )
    concepts: float = Field(
        0.0, ge=0, description="weight of the concept loss (nouns, verbs, noun-verb pairs), for each level and modality"
    )
    focus: float = Field(2.0, ge=0, description="gamma of the focal concept loss; 0: plain cross-entropy")
    balance: float = Field(0.25, gt=0, lt=1, description="alpha of the focal concept loss: weight of present concepts")
    entities: int = Field(1024, ge=1, description="number of the most frequent nouns used as concepts")
    actions: int = Field(512, ge=1, description="number of the most frequent verbs used as concepts")
    relations: int = Field(512, ge=1, description="number of the most frequent noun-verb pairs used as concepts")
    adversary: Annotated[Literal["off", "reversal", "alternating", "wasserstein"], YamlOff] = Field(
        "off", description="adversarial training of modality discriminators, and its variant"
    )
    adversary_weight: float = Field(0.03, ge=0, description="lambda, weight of the adversarial term")
    adversary_hidden: int = Field(512, ge=2, description="hidden width of the discriminators")
    adversary_lr: float = Field(
        2e-4, gt=0, description="learning rate of the discriminators; not used with adversary=reversal"
    )

    @field_validator("negatives")
    @classmethod
    def _at_least_one(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 1:
            raise ValueError("the number of hardest negatives must be at least 1")
        return value


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The input sizes that a model is built for. Checkpoints store them.

    Attributes:
        widths: feature dimension of each stream; ``text`` is that of a token or word.
        objects: names of the object streams.
        words: size of the vocabulary; 0 if captions come only as token features.
        sentence: dimension of the sentence vector in the text stream; 0 if it has none.
        tower: configuration of the text tower trained with the model, in transformers' format.
        concepts: number of concepts of each kind; empty if no concepts are taught.
    """

    widths: Mapping[str, int]
    objects: tuple[str, ...] = ()
    words: int = 0
    sentence: int = 0
    tower: Mapping[str, Any] = field(default_factory=dict)
    concepts: Mapping[str, int] = field(default_factory=dict)


class ModelOptions(Section):
    """Options and properties that all models share.

    Attributes:
        takes_objects: whether ``streams`` may name object streams.
        takes_words: whether ``text`` may be ``words``.
        needs_graphs: whether the model reads the role graphs of captions.
        section_defaults: the model's defaults for the other sections of a configuration.
    """

    takes_objects: ClassVar[bool] = True
    takes_words: ClassVar[bool] = True
    needs_graphs: ClassVar[bool] = False
    section_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"objective": {"hinge": 1.0}}

    streams: list[str] = Field([], description="video streams to read; empty: all clip and frame streams of the store")
    text: str = Field(
        "",
        description="the text stream; empty: the only one in the store; words: word vectors learned in this run; "
        "tower:MODEL: a transformers text model (folder, hub name or minilm) trained with the model",
    )
    word_dim: int = Field(300, ge=1, description="dimension of learned word vectors (text=words without word_vectors)")
    word_vectors: str = Field(
        "",
        description="initial word vectors: .npz (words, vectors), .txt in GloVe format, or a text model, whose token "
        "embeddings are read; empty: random",
    )
    tower_lr: float = Field(1e-3, ge=0, description="learning rate of the text tower, relative to train.lr")
    tower_layers: int | None = Field(
        None, ge=0, description="number of the tower's last layers to train, the others are frozen; None: all"
    )
    dim: int = Field(1024, ge=2, description="dimension of the joint spaces")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate of the features")

    @property
    def wants_objects(self) -> bool:
        """Whether the model reads one object stream through a separate branch (option ``objects``)."""
        return False

    @property
    def wants_streams(self) -> bool:
        """Whether the model reads the streams in ``streams``."""
        return True

    @property
    def video_streams(self) -> list[str]:
        """The video streams that the model reads, once they are chosen."""
        return self.streams

    @property
    def text_stream(self) -> str:
        """The text stream that the model reads, once it is chosen; empty if it reads none."""
        return "" if self.text == "words" or self.tower else self.text

    @property
    def learns_words_by_default(self) -> bool:
        """Whether to learn words when the store has no text stream: the model can, and ``text`` was not set."""
        return self.takes_words and "text" not in self.model_fields_set

    @property
    def tower(self) -> str:
        """The text model trained with this model, by folder or name; empty for none."""
        return self.text.removeprefix("tower:") if self.text.startswith("tower:") else ""

    @property
    def pools_tokens(self) -> bool:
        """Whether the tokens of a stream or of a tower are averaged into words."""
        return self.needs_graphs and self.text != "words"

    @property
    def graph_sizes(self) -> dict[str, Any]:
        """Size limits of a role graph's tensors, as keyword arguments of ``graph_tensors``."""
        return {}

    @property
    def has_concepts(self) -> bool:
        """Whether the model itself predicts concepts."""
        return False

    @property
    def needs_words(self) -> bool:
        """Whether the model needs a vocabulary of the training captions."""
        return self.text == "words"


class BagOptions(ModelOptions):
    """Options of models that can read a bag of words beside token features."""

    text_bag: bool | Literal["auto"] = Field(
        False,
        description="read a bag of the caption's words, with vectors learned in this run, beside the caption's "
        "features; auto: if a text stream is read",
    )

    @property
    def needs_words(self) -> bool:
        return bool(self.text_bag) or super().needs_words

    @property
    def learns_words_by_default(self) -> bool:
        return super().learns_words_by_default and self.text_bag is not True

    @model_validator(mode="after")
    def _bag_needs_tokens(self) -> BagOptions:
        if self.text_bag is True and (self.text == "words" or self.tower):
            raise ValueError(f"text_bag needs the token features of a stream: with text={self.text} set it to false")
        return self


class ObjectGraph(Section):
    """Options of the graph over a clip's objects."""

    graph: Literal["none", "spatial", "temporal", "both", "joint"] = Field(
        "both",
        description="edges between objects: within a frame (spatial), between neighbouring frames (temporal), both, "
        "or all objects in one graph (joint)",
    )
    graph_dim: int = Field(1024, ge=1, description="d_g, dimension of the graph's nodes")
    graphs: int = Field(16, ge=1, description="G, number of parallel graphs")
    graph_layers: int = Field(1, ge=0, description="number of graph layers")
    key_dim: int = Field(256, ge=1, description="d_k, dimension of the projections that give the edge weights")
    distance: float | None = Field(
        0.2, gt=0, description="mu: maximum length of a spatial edge, as a share of the frame width; None: no limit"
    )
    geometry: bool = Field(True, description="add the boxes to nodes and edges")


class AMENet(BagOptions, ObjectGraph):
    """AME-Net. The defaults did best over several data sets: docs/concepts/amenet.md."""

    takes_objects: ClassVar[bool] = False
    section_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
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
    relation_branch: bool = Field(True, description="use the relation branch (objects)")
    global_branch: bool = Field(True, description="use the global branch (clip and frame features)")
    objects: str = Field("", description="the object stream; empty: the only one in the store")
    dim: int = Field(512, ge=2, description="dimension of the joint spaces")
    dropout: float = Field(0.4, ge=0, lt=1, description="dropout rate of the global space")
    pooling: Literal["mean", "attention"] = Field("mean", description="pooling of clip and frame features over rows")
    scaling: Literal["auto", "layernorm", "standard", "logit"] = Field(
        "auto",
        description="scaling of the global branch's features; standard: standardize each component over the training "
        "clips; logit: standardize the log-odds, for features that are probabilities; auto: logit for "
        "probabilities, else standard",
    )
    hidden: int = Field(
        1024, ge=0, description="width of the hidden layer of the global space, for videos and texts; 0: no layer"
    )
    sequence: Literal["none", "gru", "transformer"] = Field(
        "none", description="sequence model over a stream's rows, before pooling"
    )
    text_sequence: Literal["none", "gru", "transformer"] = Field(
        "gru", description="sequence model over tokens in the relation space; word order tells who acts on whom"
    )
    text_bag: bool | Literal["auto"] = Field(
        "auto", description="read a bag of the caption's words, as in dual_encoding; auto: if a text stream is read"
    )
    bag_dropout: float = Field(0.5, ge=0, lt=1, description="dropout rate of the words of text_bag")
    weight: float = Field(0.5, ge=0, le=1, description="w, weight of the relation space in the score")
    relation_dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate of the relation space")
    graph_dim: int = Field(96, ge=1, description="d_g, dimension of the graph's nodes")
    graphs: int = Field(2, ge=1, description="G, number of parallel graphs")
    graph_layers: int = Field(
        2, ge=0, description="number of graph layers; with two, an object's own motion reaches the other objects"
    )
    key_dim: int = Field(32, ge=1, description="d_k, dimension of the projections that give the edge weights")
    distance: float | None = Field(
        None, gt=0, description="mu: maximum length of a spatial edge, as a share of the frame width; None: no limit"
    )
    hubs: int = Field(
        10,
        ge=0,
        description="k: subtract from each score the mean similarity to the k nearest training captions and clips, so "
        "that hubs do not rank first everywhere (CSLS); 0: leave scores unchanged",
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
        """Reduce ``global`` to the plain global branch: means and linear projections."""
        if isinstance(values, dict) and values.get("name") == "global":
            plain = {"hidden": 0, "text_bag": False, "hubs": 0}
            return plain | values | {"relation_branch": False, "global_branch": True}
        return values

    @model_validator(mode="after")
    def _has_branch(self) -> AMENet:
        if not (self.relation_branch or self.global_branch):
            raise ValueError("at least one of relation_branch and global_branch must be on")
        return self


class RoleGraphs(ModelOptions, ObjectGraph):
    """Options of models that read a caption as a graph of its verbs and their arguments (HGR, MCSAN)."""

    needs_graphs: ClassVar[bool] = True

    text: str = Field(
        "words",
        description="what phrases are pooled from; words: word vectors learned in this run; the name of a text stream "
        "or tower:MODEL as in amenet: its tokens, averaged into words",
    )
    tokenizer: str = Field(
        "",
        description="the text model that made the stream, for its tokenizer; empty: as the store records it",
    )
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout rate of the video features")
    text_dropout: float = Field(0.2, ge=0, lt=1, description="dropout rate of the word vectors")
    text_layers: int = Field(1, ge=1, description="number of GRU layers over the words")
    scaling: Literal["none", "layernorm", "standard", "logit"] = Field(
        "none",
        description="scaling of clip and frame features before projection; standard: standardize each component over "
        "the training clips; logit: standardize the log-odds, for features that are probabilities",
    )
    role_layers: int = Field(1, ge=0, description="number of graph layers over a caption's phrases; 0: no graph")
    role_dropout: float = Field(0.5, ge=0, lt=1, description="dropout rate of the role graph")
    verbs: int = Field(4, ge=1, description="maximum number of verbs per caption")
    nouns: int = Field(6, ge=1, description="maximum number of other phrases per caption")
    fusion: Literal["embed", "sim"] = Field(
        "embed",
        description="attention over rows: average the attended rows, then compare (embed), or average their cosines "
        "(sim)",
    )
    sharpness: float = Field(4.0, gt=0, description="lambda, the sharpness of the attention over rows")

    @property
    def graph_sizes(self) -> dict[str, Any]:
        return {"verbs": self.verbs, "nouns": self.nouns}


class HGR(RoleGraphs):
    """HGR; the defaults are the released settings. Object streams and their graph are our addition."""

    name: Literal["hgr"] = "hgr"
    levels: list[Literal["sent", "verb", "noun"]] = Field(
        ["sent", "verb", "noun"], min_length=1, description="levels whose scores are averaged"
    )


class MCSAN(RoleGraphs):
    """MCSAN, reconstructed. Its paper gives no settings; defaults are from HGR and HANet: docs/concepts/models.md."""

    # As in HANet, features and concepts have separate ranking losses.
    section_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "objective": {
            "hinge": {"features": 1.0, "concepts": 0.1},
            "divergence": 0.1,
            # HANet's 0.01 learns no concepts and does not improve ranking: see docs/concepts/models.md.
            "concepts": 10.0,
        }
    }

    name: Literal["mcsan"] = "mcsan"
    levels: list[Literal["global", "entity", "action", "relationship"]] = Field(
        ["global", "entity", "action", "relationship"], min_length=1, description="levels whose scores are averaged"
    )
    relation: Literal["pair", "triple"] = Field(
        "pair", description="a relationship: a verb and one argument (pair), or a verb with its ARG0 and ARG1 (triple)"
    )
    relations: int = Field(8, ge=1, description="N_r, maximum number of relationships per caption")
    attributes: Annotated[Literal["off", "separate", "shared"], YamlOff] = Field(
        "shared", description="projection to concepts: shared by videos and texts, separate for each, or off"
    )
    attribute_norm: Literal["shared", "separate"] = Field(
        "shared", description="batch normalisation statistics of the concepts: shared by videos and texts, or separate"
    )
    attribute_score: bool = Field(True, description="add the concepts to the score, as half of it")

    @property
    def has_concepts(self) -> bool:
        return self.attributes != "off"

    @property
    def graph_sizes(self) -> dict[str, Any]:
        sizes = {"verbs": self.verbs, "nouns": self.nouns}
        return sizes | {"relations": self.relations, "triples": self.relation == "triple"}


class CLIPMean(ModelOptions):
    """Mean-pooled CLIP. Only the temperature is learned."""

    takes_objects: ClassVar[bool] = False
    takes_words: ClassVar[bool] = False
    section_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {"objective": {"contrastive": 1.0}}

    name: Literal["clip_mean"] = "clip_mean"
    text: str = Field(
        "", description="a text stream with sentence vectors in CLIP's space; empty: the only one in the store"
    )

    @field_validator("text")
    @classmethod
    def _names_a_stream(cls, value: str) -> str:
        if value == "words" or value.startswith("tower:"):
            raise ValueError("clip_mean trains no text model: name a text stream")
        return value


class DualEncoding(BagOptions):
    """Dual Encoding; the paper's defaults, except word vectors: 300 dimensions, learned in this run."""

    takes_objects: ClassVar[bool] = False

    name: Literal["dual_encoding"] = "dual_encoding"
    dim: int = Field(2048, ge=2, description="dimension of the joint space")
    dropout: float = Field(0.2, ge=0, lt=1, description="dropout rate of the joint space")
    rnn_dim: int = Field(512, ge=1, description="GRU size in each direction")
    filters: int = Field(512, ge=1, description="number of filters of each convolution")
    scaling: Literal["none", "layernorm", "standard", "logit"] = Field(
        "none", description="scaling of the features, as in amenet; none: unchanged"
    )


class HCMI(ModelOptions, ObjectGraph):
    """HCMI, on CLIP or other features. The paper does not give its settings: docs/concepts/models.md."""

    section_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "objective": {
            "contrastive": {"levels": 3.0},
            "hinge": {"video_sentence": 0.5},
            "denoise": "or",
        }
    }

    name: Literal["hcmi"] = "hcmi"
    dim: int = Field(512, ge=2, description="dimension of the joint space; with project=false, of the features")
    project: bool = Field(True, description="project the features first; CLIP features need no projection")
    scaling: Literal["none", "layernorm", "standard", "logit"] = Field(
        "none", description="scaling of the features before projection, as in amenet; none: unchanged"
    )
    levels: list[Literal["frame_word", "clip_phrase", "video_sentence"]] = Field(
        ["frame_word", "clip_phrase", "video_sentence"],
        min_length=1,
        description="levels whose scores and losses count",
    )
    aggregation: Literal["assign", "queries", "clusters"] = Field(
        "assign", description="how tokens are grouped: variants A, B and C of docs/concepts/models.md"
    )
    clips: int = Field(4, ge=1, description="N_c, number of frame groups")
    phrases: int = Field(4, ge=1, description="N_p, number of word groups")
    token_weights: Literal["learned", "uniform"] = Field("learned", description="weights of tokens in comparisons")
    temporal_layers: int = Field(0, ge=0, description="number of transformer layers over the frames, before grouping")


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
