"""AME-Net for `amex demo`: on 400 clips of Shapes, with twins for training too, to learn the roles.

amex manifest shapes --out demo --clips 400 --train-twins
amex train amenet_demo --store demo.zarr --manifest demo/manifest.jsonl --work-dir W
"""

base = "_shapes"
model = {
    "name": "amenet",
}
data = {
    # With a clip and its twin in one batch, only the roles distinguish their captions.
    "together": "swapped",
    "similar": 0,
}
train = {
    "epochs": 80,
}
# For `amex ablate amenet_demo`.
variants = {
    "global only": ["model.relation_branch=false"],
    "relation only": ["model.global_branch=false"],
    "twins in any batch": ["data.together=''"],
    "words learned here": ["model.text=words"],
}
