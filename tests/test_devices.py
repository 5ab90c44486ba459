"""The workers' machines decide on device and precision, and fp32 is equal in every process."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import amex, extract_options
from stand_in import bf16_on_gpu
from test_names import NAME, TINY
from transformers import BertConfig, BertModel, BertTokenizerFast

from amex.cli.extract import where_computed
from amex.errors import AmexError
from amex.extract.encoders.networks import load_network
from amex.extract.encoders.objects import Detector, plan_objects
from amex.extract.encoders.registry import plan_stream
from amex.extract.encoders.text import TextEncoder, plan_text
from amex.extract.encoders.windows import LoadedNetwork
from amex.extract.run import job
from amex.extract.run.batch import Jobs
from amex.extract.run.cluster import local
from amex.extract.run.part import ClipTask, Job, PartTask, VideoTask, run_part
from amex.features import create_store, declare_stream


@pytest.fixture
def gpu_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a workstation with a GPU; the workers of the session's cluster have none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)


@pytest.mark.usefixtures("gpu_here")
def test_the_workers_of_a_scheduler_choose_the_device(clips: Path, tmp_path: Path, cluster: str) -> None:
    options = ("--dataset", "folder", "--videos", clips, "--store", tmp_path / "s.zarr", "--cluster", cluster, *TINY)
    result = amex("extract", *options, "--limit", 1)
    assert result.exit_code == 0, result.output
    assert f"{NAME}: 1 done" in result.output
    refused = amex("extract", *options, "--device", "cuda")
    assert refused.exit_code == 1
    assert f"no worker at {cluster} can run this: no device cuda: torch sees 0 CUDA devices" in refused.output


def test_workers_with_gpus_are_used_if_this_machine_has_none(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "worker_choice", bf16_on_gpu)
    assert where_computed(extract_options("--cluster", cluster), cluster) == ("cuda", "bf16")


def test_without_workers_the_choice_of_a_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "WITHOUT_WORKERS", 0.5)
    with local(0) as workers, pytest.raises(job.NoWorkers):
        job.choose_on_workers(workers.client.scheduler.address, "auto", "auto")


def test_differing_workers_are_an_error_and_incapable_workers_are_ignored() -> None:
    gpu, cpu, cannot = ("cuda", "bf16"), ("cpu", "fp32"), AmexError("no device cuda")
    assert job.common_choice("tcp://s", [gpu, cannot, gpu]) == gpu
    with pytest.raises(AmexError) as caught:
        job.common_choice("tcp://s", [gpu, cpu, gpu])
    assert str(caught.value) == (
        "the workers at tcp://s differ: 2 would use cuda in bf16, 1 would use cpu in fp32; set --device and --precision"
    )


JOBS = Jobs(system="slurm", count=1, cpus=1, memory="1GB", gpus=1)


@pytest.mark.parametrize("device_and_precision", [("--precision", "fp16"), ("--device", "cuda")])
@pytest.mark.parametrize("cluster", [JOBS, "tcp://10.0.0.1:8786"])
def test_a_dry_run_uses_the_cpu_if_only_the_workers_have_gpus(
    device_and_precision: tuple[str, str], cluster: Any
) -> None:
    device, precision = where_computed(extract_options(*device_and_precision, "--dry-run"), cluster)
    assert device == "cpu"
    assert precision in ("fp32", "bf16")


def test_a_dry_run_of_gpu_jobs_says_that_the_cpu_was_timed(clips: Path, tmp_path: Path) -> None:
    options = ("--dataset", "folder", "--videos", clips, "--store", tmp_path / "s.zarr", *TINY)
    planned = amex("extract", *options, "--cluster", "slurm", "--gpus-per-job", 1, "--dry-run")
    assert planned.exit_code == 0, planned.output
    assert "would compute 4 of 4 clips" in planned.output
    assert "timed on the CPU of this machine" in planned.output


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ("slurm", "--workers is for this machine: a batch job has one worker, or one a GPU; say --jobs N"),
        ("tcp://s:1", "on others, start them with amex worker tcp://s:1 --workers 3"),
    ],
)
def test_options_that_would_be_ignored_are_refused(cluster: str, words: str, tmp_path: Path) -> None:
    options = ("--dataset", "folder", "--videos", tmp_path, "--store", tmp_path / "s.zarr", "--cluster", cluster)
    refused = amex("extract", *options, "--workers", 3)
    assert refused.exit_code == 2
    assert words in " ".join(refused.output.split())


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A minimal BERT."""
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a")))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(vocab_size=6, hidden_size=4, num_hidden_layers=1, num_attention_heads=1, intermediate_size=4)
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_float32_does_not_become_tf32_whichever_encoders_share_a_process(bert: str, precision: str) -> None:
    detector = plan_objects(
        "o", config="shapes_detector", weights="default", precision=precision, options={}, batch_size=1
    )
    text = plan_text("t", model=bert, precision=precision)
    kinds = {
        "windows": lambda: LoadedNetwork(load_network("r2plus1d_tiny", "random:0"), device="cpu", precision=precision),
        "objects": lambda: Detector(detector, "cpu"),
        "text": lambda: TextEncoder(text, "cpu"),
    }
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        for first, second in itertools.permutations(kinds, 2):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            for kind in (first, second):
                kinds[kind]()
                assert not torch.backends.cuda.matmul.allow_tf32, kind
                assert not torch.backends.cudnn.allow_tf32, kind
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_a_job_can_request_deterministic_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", torch.backends.cudnn.benchmark)
    store = create_store(tmp_path / "s.zarr")
    plan = plan_stream(NAME, NAME, device="cpu", precision="fp32")
    declare_stream(store, NAME, plan.spec, {})
    clip = ClipTask(clip_id="a", video="a", start=None, end=None, attempt=1, streams=(0,))
    for index, deterministic in enumerate((True, False)):
        part = PartTask(index=index, videos=(VideoTask(path=None, missing="none", clips=(clip,)),))
        run_part(
            part, Job(store=store, videos=tmp_path, streams=(plan,), texts=(), deadline=9, deterministic=deterministic)
        )
        assert torch.backends.cudnn.deterministic == deterministic
        assert torch.backends.cudnn.benchmark == (not deterministic)
