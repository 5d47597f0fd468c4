"""The page of records: everything is escaped, probabilities are those that are stored, nobody else reads it."""

import html
import http.client
import threading

import numpy as np
import pytest

from d2l.data import jsonl
from d2l.data.record import Query, Record, Teacher
from d2l.data.shards import write_records
from d2l.errors import UserError
from d2l.serve.view import RECORDS_PER_PAGE, View, make_server
from d2l.target.weights import load_target

EVIL = '<script>alert("1 & 2")</script>'


@pytest.fixture
def stored(target_folder, tmp_path):
    """Records with a teacher, one of whose tokens was drawn outside of what is stored."""
    loaded = load_target(target_folder)
    (grass,), (sky,), (sun,) = (loaded.tokenizer.encode(word)[:1] for word in (" grass", " sky", " sun"))
    response = np.array([grass, sun], np.int32)
    tokens = np.array([[grass, sky], [grass, sky]], np.int32)
    logp = np.log(np.array([[0.875, 0.0625], [0.5, 0.25]], np.float32))
    query = Query("What is <green>?", ("the grass",), "fact", Teacher(response, tokens, logp), "It is")
    records = [Record(f"{i}{EVIL}", f"{EVIL} {i}", (query,), "noise", "train") for i in range(RECORDS_PER_PAGE + 1)]
    write_records(tmp_path / "stored", records, teacher=loaded.weights_hash)
    return str(tmp_path / "stored")


def test_page_shows_all_and_escapes_it(stored, target_folder):
    view = View(stored, str(target_folder))
    page = view.page()
    assert "<script" not in page and page.count(html.escape(EVIL, quote=False).replace('"', "&#34;")) > 0
    assert "What is &lt;green&gt;?" in page and ">It is</span>the grass" in page and "fact" in page
    assert 'style="--p:0.875"' in page and "87.5%" in page
    assert 'style="--p:0.000"' in page and "under 25.0%" in page
    assert page.count("<article>") == RECORDS_PER_PAGE and "page 1 of 2" in page
    assert view.page(9) == view.page(2) and view.page(2).count("<article>") == 1
    assert view.page(size=100).count("<article>") == RECORDS_PER_PAGE + 1 and "page 1" not in view.page(size=100)


def test_server_answers_this_machine_alone(stored, target_folder):
    view = View(stored, str(target_folder))
    with make_server(view, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()

        def get(path, **headers):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            body = answer.read().decode()
            connection.close()
            return answer.status, body

        try:
            assert get("/?page=2") == (200, view.page(2))
            assert get("/?page=x") == (200, view.page(1))
            assert get("/../secret")[0] == get("/", Host="evil.example")[0] == 404
            with pytest.raises(UserError, match="cannot be had"):
                make_server(view, server.server_port)
        finally:
            server.shutdown()
            thread.join()


def test_plain_records_need_no_target_and_other_targets_are_refused(stored, tmp_path):
    record = Record("one", "The sky is blue.", (Query("What is blue?", ("the sky",)),), "noise", "test")
    jsonl.write_records(tmp_path / "plain.jsonl", [record])
    page = View(str(tmp_path / "plain.jsonl")).page()
    assert "What is blue?" in page and "colour" not in page
    with pytest.raises(UserError, match="name the one that gave them with --target"):
        View(stored)
