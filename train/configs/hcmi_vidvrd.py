"""HCMI on VidVRD: ResNet-152 frames, a 3D CNN, "dog bite frisbee"; 447 clips, 287 to learn from.

amex train hcmi_vidvrd --store vidvrd.zarr --manifest vidvrd.jsonl --work-dir W
"""

base = "_vidvrd"
model = {
    "name": "hcmi",
}
# By the paper's rule no clip is ever as near as a clip's own draws. With a slack of 0.2 some are, a quarter of them
# with the same caption; on validation that is as good as 0.1, where hardly any is.
objective = {"denoise_slack": 0.2}
# Two draws of a clip's rows are alike in kind, for the denoising.
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
