"""AME-Net for `amex demo`: on 400 clips of Shapes, with twins for training too, to know who does it to whom.

amex manifest shapes --out demo --clips 400 --train-twins
amex train amenet_demo --store demo.zarr --manifest demo/manifest.jsonl --work-dir W
"""

base = "_shapes"
model = {
    "name": "amenet",
}
data = {
    # Of a clip and its twin in one batch only the roles tell which caption is whose.
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
