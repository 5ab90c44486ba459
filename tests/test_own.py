"""The user's own networks, given by the function that returns them. docs/extend describes models and data sets."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import amex
from videos import encode

from amex.errors import AmexError
from amex.extract.encoders.registry import plan_stream
from amex.extract.encoders.weights import WeightsError
from amex.extract.encoders.windows import WindowPlan
from amex.extract.video.sampling import Sampling

PAGE = Path(__file__).parents[1] / "docs" / "extend" / "encoder.md"


def plan(factory: str, **options: str) -> WindowPlan:
    return plan_stream("x", f"python:{factory}", device="cpu", precision="fp32", options=options)


def test_the_users_network_declares_its_sampling_and_transform() -> None:
    planned = plan("stand_in:brightness", stride="4")
    assert planned.sampling == Sampling(frames=2, stride=4)
    assert planned.spec["network"] == "python:stand_in:brightness"
    assert planned.spec["output"] == {"shape": [3], "dtype": "float16"}
    window = torch.randint(0, 256, (5, 2, 24, 32, 3), dtype=torch.uint8)
    values = planned.encoder("cpu")(window)["values"]
    torch.testing.assert_close(values, window.float().mean((1, 2, 3)) / 255)
    assert planned.encoder("cpu").network is planned.encoder("cpu").network


def test_without_a_transform_frames_have_their_own_size_in_0_to_1() -> None:
    planned = plan("stand_in:untouched")
    assert planned.transform is None
    assert planned.spec["transform"] is None
    window = torch.full((1, 2, 10, 12, 3), 51, dtype=torch.uint8)
    torch.testing.assert_close(planned.encoder("cpu")(window)["values"], torch.full((1, 3), 0.2))


def test_weights_are_in_the_spec_and_must_be_equal_in_every_process() -> None:
    torch.manual_seed(0)
    planned = plan("stand_in:drawn_anew")
    assert planned.spec["weights_sha256"] != plan("stand_in:brightness").spec["weights_sha256"]
    with pytest.raises(WeightsError, match=r"weights stand_in:drawn_anew of .* differ between this worker"):
        planned.encoder("cpu")


def test_every_dtype_has_a_digest() -> None:
    assert plan("stand_in:in_bfloat16").spec["weights_sha256"] != plan("stand_in:brightness").spec["weights_sha256"]


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("stand_in", "python:stand_in is not python:MODULE:NAME"),
        ("stand_in:", "python:stand_in: is not python:MODULE:NAME"),
        ("nowhere.at.all:f", "cannot import nowhere.at.all .*: put the folder that it is in on PYTHONPATH"),
        ("stand_in:nothing", "python:stand_in:nothing failed: AttributeError"),
        ("stand_in:fails", "python:stand_in:fails failed: RuntimeError: no weights here$"),
        ("stand_in:leaves", "python:stand_in:leaves failed: SystemExit: 0"),
        ("stand_in:sparse", "matrix in the network's state is not a dense tensor"),
        ("stand_in:no_network", r"returned a str instead of a torch\.nn\.Module"),
        ("stand_in:without_transform", r"attribute transform must be .*Transform \| None, found nothing"),
        ("stand_in:wrong_dim", r"returned a tensor \(1, 3\) instead of \(1, 4\)"),
        ("stand_in:no_tensor", "returned a list instead of a tensor"),
        ("stand_in:fails_on_windows", "cannot take windows of 2 frames of 32x24: AttributeError"),
    ],
)
def test_a_function_that_returns_no_network_is_refused_before_the_run(factory: str, message: str) -> None:
    with pytest.raises(AmexError, match=message) as caught:
        plan(factory)
    assert str(caught.value).startswith("stream x: ")
    assert "\n" not in str(caught.value)


def test_a_run_reports_smaller_batches_after_memory_ran_out(tmp_path: Path, cluster: str) -> None:
    (tmp_path / "v").mkdir()
    encode(tmp_path / "v" / "a.mp4", frames=40)
    options = ("--stream", "x=python:stand_in:short_of_memory", "--batch-size", 4)
    where = ("--dataset", "folder", "--videos", tmp_path / "v", "--store", tmp_path / "s.zarr", "--device", "cpu")
    run = amex("extract", *where, "--cluster", cluster, *options)
    assert run.exit_code == 0, run.output
    assert "  x: no memory for batches of 4; batches of 2 from now on\n" in run.output


def test_the_documented_network_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python[^\n]*\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(block.splitlines()) < 60
    (tmp_path / "my_encoder.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    planned = plan("my_encoder:motion")
    window = np.stack([planned.transform(np.full((90, 120, 3), 9, np.uint8))] * 8)[None]
    assert planned.encoder("cpu")(torch.from_numpy(window))["values"].shape == (1, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train", "python:stand_in:brightness"), "is not a subclass of amex.train.models.RetrievalModel"),
        (("train", "python:amex.train.models:HGR"), "HGR: the class needs Options, a subclass of"),
        (("extract", "--dataset", "python:stand_in:HEIGHT"), "python:stand_in:HEIGHT is a int, not an amex.manifests"),
    ],
)
def test_models_and_data_sets_of_ones_own_are_checked_before_the_run(words: tuple[str, ...], message: str) -> None:
    result = amex(*words)
    assert result.exit_code == 1
    assert message in result.stderr
