"""What turns pixels and captions into features: networks, their weights and conventions. Knows no video file.

``registry.plan_stream`` leads from what a user calls a stream to its plan. A plan is small, is sent to workers, and has
``spec`` (all that decides the numbers) and ``encoder(device)``. Plans of what looks at frames are

    windows.WindowPlan   one vector a window, by a Model: presets (networks with names of their own), hub
                         (transformers), timm_models, own
    objects.ObjectsPlan  boxes and their features, by MMDetection

and have ``sampling`` and ``transform`` too; ``text.TextPlan`` is of captions. ``weights`` finds, checks and shares
models, ``batches`` brings windows to an encoder, ``devices`` says on what it computes.

What the room offers is imported when it is first asked for: most of it needs torch.
"""

from __future__ import annotations

from ..lazy import offer

__getattr__, __all__ = offer(
    __name__,
    {
        "Batches": "batches",
        "Encoded": "batches",
        "choose_device": "devices",
        "choose_precision": "devices",
        "NETWORKS": "networks",
        "choose_kernels": "numerics",
        "ALIASES": "objects",
        "ObjectsPlan": "objects",
        "DEFAULT_PRESET": "presets",
        "PRESETS": "presets",
        "known_weights": "published",
        "RECIPES": "recipes",
        "find_recipe": "recipes",
        "KINDS": "registry",
        "StreamPlan": "registry",
        "by_kind": "registry",
        "is_text": "registry",
        "plan_stream": "registry",
        "DEFAULT_MODELS": "text",
        "TextPlan": "text",
        "clip_text_vectors": "text",
        "encode_like": "text",
        "sentence_vectors": "text",
        "WeightsError": "weights",
        "model_directory": "weights",
        "WindowPlan": "windows",
        "normalise": "windows",
    },
)
