from __future__ import annotations

import logging
import threading

import pytest
import trio

from hyperlog.worker import Worker


def test_it_runs_in_a_daemon_thread_of_its_own():
    seen = []

    async def run():
        seen.append((threading.current_thread().name, threading.current_thread().daemon))
        assert worker.is_current

    worker = Worker("shipping", run)
    assert worker.start()
    assert worker.join(5)
    assert seen == [("shipping", True)]
    assert not worker.is_current


def test_cancelling_ends_it_from_any_thread():
    running = threading.Event()

    async def run():
        running.set()
        await trio.sleep_forever()

    worker = Worker("shipping", run)
    worker.start()
    assert running.wait(5)
    assert not worker.join(0)
    worker.cancel()
    assert worker.join(5)
    worker.cancel()  # once more does no harm


def test_cancelling_before_the_start_is_not_forgotten():
    reached = []

    async def run():
        await trio.sleep_forever()
        reached.append(True)

    worker = Worker("shipping", run)
    worker.cancel()
    worker.start()
    assert worker.join(5)
    assert reached == []


def test_a_failure_is_logged_and_stays_inside(caplog):
    async def run():
        raise ValueError("broken")

    worker = Worker("shipping", run)
    with caplog.at_level(logging.ERROR, "hyperlog"):
        worker.start()
        assert worker.join(5)
    assert "the client's thread has failed" in caplog.text
    assert "broken" in caplog.text


def test_where_no_thread_can_be_started_it_says_so(monkeypatch, caplog):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)

    async def run():
        pytest.fail("must not run")

    worker = Worker("shipping", run)
    with caplog.at_level(logging.WARNING, "hyperlog"):
        assert not worker.start()
    assert "no thread can be started (can't start new thread)" in caplog.text
    assert worker.join(0)
