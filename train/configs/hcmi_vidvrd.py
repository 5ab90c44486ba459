"""HCMI on VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from.

amex train hcmi_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

base = "_vidvrd"
model = {
    "name": "hcmi",
}
# By the paper's rule, no other clip is as close as a clip's own draws. With a slack of 0.2 some are, and a quarter of
# these have the same caption. With 0.1 almost none is; validation figures are equal.
objective = {"denoise_slack": 0.2}
# Random rows, so that both draws of a clip for the denoising have the same distribution.
data = {
    "rows": "random",
}
# For `amex ablate hcmi_vidvrd`.
variants = {
    "video and sentence alone": ["model.levels=[video_sentence]"],
    "clips and phrases alone": ["model.levels=[clip_phrase]"],
    "frames and words alone": ["model.levels=[frame_word]"],
    "no denoising": ["objective.denoise=off"],
    "no enhancement": ["objective.contrastive={levels: 3}"],
}
