"""Encoders: networks that turn pixels and captions into features, with their weights and input conventions. No files.

``registry.plan_stream`` makes the plan of a stream from its name on the command line. A plan is small and is sent to
workers. It has a ``spec`` (everything that decides the numbers) and a method ``encoder(device)``. Plans of streams that
read frames also have ``sampling`` and ``transform``:

    windows.WindowPlan   one vector per window, by a ``Model`` from presets (amex's named networks), hub
                         (transformers), timm_models or own (the user's network)
    objects.ObjectsPlan  boxes and their features, by MMDetection
    text.TextPlan        tokens and sentences of captions; reads no frames

``weights`` finds, checks and caches models, ``batches`` passes windows to an encoder, ``devices`` chooses the device.

Names are imported on first use, because most modules need torch.
"""

from __future__ import annotations

from ..lazy import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    {
        "Batches": "batches",
        "Encoded": "batches",
        "choose_device": "devices",
        "choose_precision": "devices",
        "NETWORKS": "networks",
        "choose_kernels": "numerics",
        "ALIASES": "kinds",
        "ObjectsPlan": "objects",
        "DEFAULT_PRESET": "kinds",
        "check_network": "kinds",
        "PRESETS": "presets",
        "known_weights": "published",
        "RECIPES": "recipes",
        "find_recipe": "recipes",
        "KINDS": "kinds",
        "StreamPlan": "registry",
        "split_plans": "registry",
        "is_text": "kinds",
        "plan_stream": "registry",
        "DEFAULT_MODELS": "kinds",
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
