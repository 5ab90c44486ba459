"""HCMI on Shapes, the embedded data set: clip features and objects are its frames, a BERT's tokens its words.

amex train hcmi_shapes --store shapes.zarr --manifest shapes/manifest.jsonl --work-dir W
"""

base = "_shapes_objects"
model = {
    "name": "hcmi",
    "streams": ["r2plus1d_tiny", "objects"],
    "scaling": "layernorm",
}
# Random rows, so that both draws of a clip for the denoising have the same distribution.
data = {
    "rows": "random",
}
# For `amex ablate hcmi_shapes`.
variants = {
    "video and sentence alone": ["model.levels=[video_sentence]"],
    "clips and phrases alone": ["model.levels=[clip_phrase]"],
    "frames and words alone": ["model.levels=[frame_word]"],
    "no denoising": ["objective.denoise=off"],
    "no enhancement": ["objective.contrastive={levels: 3}"],
    "learned queries": ["model.aggregation=queries"],
    "clusters": ["model.aggregation=clusters"],
}
