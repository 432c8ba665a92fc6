"""What the pages about deploying tell one to run: commands that bash reads, targets and files that there are."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts.local_service import ROOT
from tests.deploy.manifests import OVERLAYS
from tests.deploy.names import DEPLOY, RULES
from tests.deploy.test_compose import SERVICES

PAGES = (ROOT / "docs" / "deploy.md", DEPLOY / "k8s" / "README.md")
MADE_BY_THE_READER = {"deploy/k8s/secrets.yaml"}

for_each = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)


def commands(page: Path) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@for_each
def test_commands_are_of_a_form_that_bash_reads(page: Path) -> None:
    assert commands(page)
    for command in commands(page):
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)


@for_each
def test_targets_of_make_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", page.read_text())) <= targets


@for_each
def test_files_are_there(page: Path) -> None:
    named = {path.rstrip(".") for path in re.findall(r"(?<![\w./-])(?:deploy|tests)/[\w./-]+", page.read_text())}
    for path in named - MADE_BY_THE_READER:
        assert (ROOT / path).exists(), path


def test_every_overlay_is_told_of() -> None:
    text = (DEPLOY / "k8s" / "README.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \|", text, re.MULTILINE) == sorted(
        OVERLAYS, key=["cpu", "gpu", "gpu-8", "split", "split-s3", "canary"].index
    )


def test_the_image_of_redis_is_that_of_compose() -> None:
    named = set(re.findall(r"\bredis:[\d.]+[\w.-]*", (ROOT / "docs" / "deploy.md").read_text()))
    assert named == {SERVICES["redis"]["image"]}


def test_rules_become_what_the_prometheus_operator_reads() -> None:
    """By the command of the page, without sending anything."""
    (command,) = (each for each in commands(PAGES[1]) if "PrometheusRule" in each)
    command = command.replace("| kubectl apply -f -", "")
    made = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [rule for rule in yaml.safe_load_all(made) if rule is not None]
    assert [rule["kind"] for rule in found] == ["PrometheusRule"] * len(RULES)
    for rule, name in zip(found, RULES, strict=True):
        assert rule["spec"] == yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
        assert rule["metadata"]["name"] == f"embeddings-{name.removesuffix('.yml')}"
