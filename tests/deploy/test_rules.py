"""What promtool says of the rules, and that each alert is tested and explained."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.local_service import ROOT
from tests.deploy.names import DEPLOY, RULES, rules

FOLDER = DEPLOY / "prometheus"
TESTS = sorted((FOLDER / "tests").glob("*.yml"))
OPERATIONS = ROOT / "docs" / "operations.md"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")


def promtool(*arguments: str | Path, folder: Path = FOLDER) -> str:
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@needs_promtool
def test_the_configuration_is_one(tmp_path: Path) -> None:
    """With a key in another place, as promtool looks for the file."""
    key = tmp_path / "metrics_key"
    key.write_text("key")
    text = (FOLDER / "prometheus.yml").read_text()
    assert "credentials_file: /run/secrets/metrics_key" in text
    (tmp_path / "prometheus.yml").write_text(text.replace("/run/secrets/metrics_key", str(key)))
    for name in RULES:
        shutil.copy(FOLDER / name, tmp_path)
    told = promtool("check", "config", "prometheus.yml", folder=tmp_path)
    assert f"SUCCESS: {len(RULES)} rule files found" in told


@needs_promtool
@pytest.mark.parametrize("name", RULES)
def test_rules_can_be_read(name: str) -> None:
    assert "SUCCESS" in promtool("check", "rules", "--lint-fatal", name)


@needs_promtool
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_rules_do_what_they_should(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


def test_every_rule_is_tested_and_every_alert_both_ways() -> None:
    cases = [
        case
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for case in test["promql_expr_test"]
    ]
    for alert in rules("alert"):
        matching = [case for case in cases if re.search(asks_for(alert), case["expr"])]
        fired = [case for case in matching if any(f'"{alert}"' in s["labels"] for s in case["exp_samples"])]
        assert fired, f"{alert} never fires"
        assert [case for case in matching if not case["exp_samples"]], f"{alert} always fires"
    for record in rules("record"):
        assert any(record in case["expr"] and case["exp_samples"] for case in cases), f"{record} is not tested"


def asks_for(alert: str) -> str:
    """A pattern of queries for this alert: by its name, or by what its name begins with."""
    return rf'alertname="{alert}"|alertname=~"(?:{"|".join(alert[:n] for n in range(8, len(alert)))})\.\+"'


@pytest.mark.parametrize("name", rules("alert"))
def test_an_alert_has_all_that_somebody_woken_by_it_needs(name: str) -> None:
    rule = rules("alert")[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert re.fullmatch(r"[1-9]\d*m", rule["for"]), "it would flap"
    assert 'job="protein_embedding_service"' in rule["expr"] or ":" in rule["expr"]
    assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"


def test_every_alert_has_its_section_and_its_row() -> None:
    text = OPERATIONS.read_text()
    section = text.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == list(rules("alert"))
    rows = re.findall(r"^\| \[(\w+)\]\(#(\w+)\) \| (\w+) \|", section, re.MULTILINE)
    severities = [(name, name.lower(), rule["labels"]["severity"]) for name, rule in rules("alert").items()]
    assert rows == severities


def test_links_inside_operations_lead_somewhere() -> None:
    text = OPERATIONS.read_text()
    headings = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
