"""A new version beside the old one, and the drill that takes it there and back."""

from __future__ import annotations

import io
from pathlib import Path

import httpx
import numpy as np

from models.catalogue import MINI
from scripts.upgrade_drill import Load, Target, drill, random_proteins, report


def answering(embeddings: np.ndarray, tag: str = "esm2_mini:new") -> httpx.Client:
    """A client of something that always answers this."""
    file = io.BytesIO()
    np.savez(file, **{f"embedding_{i}": row for i, row in enumerate(embeddings)})
    reply = {"results": [{"cached": True}], "model_info": {"tag": tag}, "download_link": "/file"}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(200, json=reply)
        return httpx.Response(200, content=file.getvalue())

    return httpx.Client(transport=httpx.MockTransport(answer))


def test_the_drill_tells_an_answer_of_the_other_version_from_the_right_one() -> None:
    proteins = random_proteins(2)
    old, new = np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32)
    load = Load(proteins, {"old": old, "new": new})
    target = Target("http://nobody", MINI.name, "new")
    assert load._ask(answering(new), target, [0, 1]) == (1, None)
    for wrong in (answering(old), answering(new, tag="esm2_mini:old")):
        _, fault = load._ask(wrong, target, [0, 1])
        assert fault is not None


def test_under_load_a_version_comes_and_goes_without_a_lost_request_or_a_stale_answer(tmp_path: Path) -> None:
    load = drill(tmp_path, seconds=1, num_clients=2)
    assert load.faults == [], report(load)
    old, new = load.expected
    served = {phase: {version for p, version in load.answered if p == phase} for phase, _ in load.answered}
    assert served == {"old": {old}, "canary": {old, new}, "switched": {new}, "rolled back": {old}}
    answered = sum(count for (phase, _), count in load.answered.items() if phase == "rolled back")
    assert load.num_cached["rolled back"] > 2 * answered, "what the old version computed is still there"
