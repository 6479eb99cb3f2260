"""Judging a classifier's features, for SHIFT."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from assets.settings import Experiment
from assets.shift.judgements import CIRCUIT
from explorer.annotating import N_FEATURES, queue
from explorer.app import Explorer
from explorer.reader import Reader
from tests.explorer.conftest import ADDRESS, with_classifier
from tests.explorer.made_up import WEIGHTS, MadeUp
from tests.explorer.test_annotating import hidden, lines
from tests.explorer.test_explorer_pages import opened

FORM = f"/made_up/annotate/{CIRCUIT}"


@pytest.fixture
def client(judged: Experiment) -> TestClient:
    return TestClient(
        Explorer([judged]).app(),
        ADDRESS,
        headers={"origin": ADDRESS},
        raise_server_exceptions=False,
    )


def test_every_feature_of_a_classifier_comes_and_of_a_cluster_the_strongest(judged: Experiment):
    reader = Reader(judged)
    assert [item.feature for item in queue(reader, "classifiers", "probe")] == list(range(60))
    assert N_FEATURES < 60


def test_a_judgement_needs_no_description_and_the_next_feature_comes(
    client: TestClient, judged: Experiment
):
    page = opened(client, FORM)
    assert "Is it about &lt;sex&gt;, and not about job?" in page
    assert 'data-judging="yes"' in page
    answer = client.post(
        FORM, data={"relevant": "no", "by": "ann", **hidden(client, FORM)}, follow_redirects=False
    )
    assert answer.status_code == 303
    assert answer.headers["location"] == f"{FORM}?by=ann&i=2&saved=1"
    (row,) = lines(judged)
    expected = {"submodule": "resid_0", "feature": 0, "weights": WEIGHTS, "relevant": False}
    assert {**row, **expected, "circuit": CIRCUIT, "text": ""} == row
    assert 'value="no" checked' in opened(client, f"{FORM}?by=ann&i=1")


def test_a_description_alone_is_no_judgement(client: TestClient, judged: Experiment):
    client.post(FORM, data={"text": "names", "by": "ann", **hidden(client, FORM)})
    assert ', done"' not in opened(client, f"{FORM}?by=ann")
    second = hidden(client, f"{FORM}?i=2")
    client.post(FORM, data={"relevant": "yes", "by": "ann", **second})
    assert opened(client, f"{FORM}?by=ann").count(', done"') == 1


def test_a_judgement_that_cannot_be_written_is_still_in_the_form(
    client: TestClient, judged: Experiment
):
    form = {"relevant": "no", "text": "women's names", "by": "ann", **hidden(client, FORM)}
    judged.annotations.mkdir()  # root may write to any file, but not to a folder
    answer = client.post(FORM, data=form)
    assert answer.status_code == 500
    assert "nothing was saved" in answer.text
    assert 'value="no" checked' in answer.text
    assert "women&#39;s names" in answer.text


def test_a_feature_of_other_dictionaries_is_not_judged(client: TestClient, judged: Experiment):
    form = {"relevant": "no", "by": "ann", **hidden(client, FORM)}
    MadeUp(judged.path.parent).dictionaries("f" * 16)
    with_classifier(judged.path)
    answer = client.post(FORM, data=form)
    assert answer.status_code == 409
    assert 'value="no" checked' in answer.text
    assert not judged.annotations.exists()
