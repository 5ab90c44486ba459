"""Mean-pooled CLIP and Dual Encoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_all_models import build, make

from amex.errors import AmexError
from amex.train.models import build_model
from amex.train.models.baselines import MultiLevel
from amex.train.options import CLIPMean, DualEncoding, Inputs


def test_mean_pooled_clip_is_the_cosine_of_the_mean_frame_with_the_sentence() -> None:
    model, batch = build("clip"), make("clip")
    actual = model.score(model.encode_videos(batch["video"]), model.encode_texts(batch["text"]))
    rows, mask = batch["video"]["clips"]["values"].numpy(), batch["video"]["clips"]["mask"].numpy()
    sentences = batch["text"]["sentence"].numpy()
    for video in range(4):
        frames = rows[video][mask[video]]
        mean = (frames / np.linalg.norm(frames, axis=1, keepdims=True)).mean(0)
        for text in range(4):
            expected = mean @ sentences[text] / np.linalg.norm(mean) / np.linalg.norm(sentences[text])
            assert actual[text, video].item() == pytest.approx(expected, abs=1e-5)


def test_frames_and_sentences_of_different_models_are_refused() -> None:
    with pytest.raises(AmexError, match="'frames' has 4 numbers per frame and 'text_clip' 5 per sentence"):
        build_model(CLIPMean(streams=["frames"], text="text_clip"), Inputs(widths={"frames": 4, "text": 7}, sentence=5))


def test_the_levels_of_dual_encoding_are_concatenated() -> None:
    torch.manual_seed(0)
    encoder = MultiLevel(5, DualEncoding(rnn_dim=4, filters=3, dropout=0.0), kernels=(2, 3)).eval()
    x, mask = torch.randn(2, 6, 5), torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]]).bool()
    actual = encoder(x, mask)
    assert actual.shape == (2, 5 + 8 + 6)
    assert torch.allclose(actual[0, :5], x[0].mean(0))
    assert torch.allclose(actual[1, :5], x[1, :2].mean(0), atol=1e-6)
    hidden, _ = encoder.gru(x[1:, :2])
    assert torch.allclose(actual[1, 5:13], hidden[0].mean(0), atol=1e-6)
    # A convolution over the two present elements with zeros around, as if the sequence ended there.
    alone = torch.relu(encoder.convolutions[0](hidden.transpose(1, 2))).amax(-1)
    assert torch.allclose(actual[1, 13:16], alone[0], atol=1e-6)
