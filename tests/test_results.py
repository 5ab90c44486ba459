"""docs/results.md and the claims on the models' pages are up to date with the files of figures."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_store

from amex.train.config import load_config, variants_of

ROOT = Path(__file__).parents[1]


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import results

    yield results
    sys.modules.pop("results")


def test_pages_are_up_to_date_with_the_figures(results: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["results.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        results.main()
    assert ended.value.code == 0


def test_every_row_can_be_configured_and_every_claim_is_about_two_rows(results: Any) -> None:
    plan = results.plan()
    for table in plan["tables"].values():
        for row in table["rows"]:
            changes = variants_of(row["config"])[row.get("variant", "default")]
            load_config(row["config"], [*table.get("set", []), *row.get("set", []), *changes])
    for claim in plan["claims"]:
        rows = {row["name"] for row in plan["tables"][claim["table"]]["rows"]}
        assert {claim["row"], claim["against"]} <= rows
        assert claim["model"] in plan["models"]
    ids = [(claim["model"], claim["table"], claim["id"]) for claim in plan["claims"]]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("bounds", "falls", "shown"),
    [
        ([3, 1, 5], False, "holds"),
        ([3, -1, 5], False, "not shown"),
        ([-3, -5, -1], False, "contradicted"),
        ([-3, -5, -1], True, "holds"),
        ([3, 1, 5], True, "contradicted"),
        ([0, 0, 0], False, "not shown"),
    ],
)
def test_a_claim_holds_if_the_interval_excludes_zero_on_its_side(
    results: Any, bounds: list[float], falls: bool, shown: str
) -> None:
    assert results.verdict(bounds, falls=falls) == shown


@pytest.mark.slow
def test_trained_tables_become_files_and_pages(results: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tiny_store(tmp_path)
    few = ["model.text=words", "model.dim=8", "model.word_dim=4", "data.batch_size=9", "train.epochs=1"]
    rows = [{"name": "plain", "config": "global"}, {"name": "fast", "config": "global", "set": ["train.lr=0.1"]}]
    table = {"title": "Tiny", "store": "s.zarr", "manifest": "m.jsonl", "seeds": [0], "set": few, "rows": rows}
    claim = {"model": "g", "id": "c", "says": "haste helps", "table": "tiny", "row": "fast", "against": "plain"}
    plan = {"models": {"g": "Global"}, "tables": {"tiny": table}, "claims": [claim]}
    (tmp_path / "results").mkdir()
    (tmp_path / "results.md.j2").write_text('{{ sources("tiny") }}\n{{ table("tiny") }}\n{{ claims("g") }}\n')
    begin, end = results.BEGIN.format("g"), results.END
    (tmp_path / "global.md").write_text(f"# Global\n\n{begin}\nstale words\n{end}\n\nrest\n")
    for name, value in {"HERE": tmp_path, "DOCS": tmp_path, "PAGE": tmp_path / "results.md"}.items():
        monkeypatch.setattr(results, name, value)
    results.train_table("tiny", table, plan["claims"], tmp_path, tmp_path / "w")
    record = json.loads((tmp_path / "results" / "tiny.json").read_text())
    assert record["rows"].keys() == {"plain", "fast"}
    assert record["clips"] == 3
    actual = record["rows"]["fast"]["less first"]["rsum"]
    assert record["claims"] == [{"claim": "c", "figure": "rsum", "interval": actual}]
    difference = record["rows"]["fast"]["mean"]["rsum"] - record["rows"]["plain"]["mean"]["rsum"]
    assert actual[0] == pytest.approx(difference, abs=0.01)
    made = results.pages(plan)
    page, of_model = made[tmp_path / "results.md"], made[tmp_path / "global.md"]
    assert "a gallery of 3 clips, 3 captions; seed 0 only" in page
    assert re.search(r"\| fast \|.*\| [+-]\d+\.\d \[", page)
    assert "| haste helps | Tiny | fast minus plain | rsum |" in page
    assert "haste helps (Tiny)" in of_model
    assert "stale words" not in of_model
    assert of_model.endswith("\nrest\n")
