from __future__ import annotations

import sqlite3
import threading
import time

import pytest
import trio

from hyperlog.errors import StoreUnavailable
from hyperlog.store.policy import StorePolicy
from hyperlog.store.sqlite import asking
from hyperlog.store.sqlite.asking import MAX_QUESTIONS, Asking
from hyperlog.store.sqlite.writer import DatabaseWriter

ENDLESS = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n"


@pytest.fixture
def path(tmp_path):
    writer = DatabaseWriter(tmp_path / "store.sqlite", StorePolicy())
    writer.open()
    writer.close()
    return tmp_path / "store.sqlite"


@pytest.fixture
def damages():
    return []


@pytest.fixture
def ask(path, damages):
    asked = Asking(path, damages.append)
    yield asked.ask
    asked.close()


async def test_a_question_ends_with_its_task(ask):
    begin = time.monotonic()
    with trio.move_on_after(0.05) as scope:
        await ask(lambda question: question.row(ENDLESS))
    assert scope.cancelled_caught
    assert time.monotonic() - begin < 2
    assert await ask(lambda question: question.row("select 1")) == (1,)


async def test_a_question_has_an_end(ask, monkeypatch):
    monkeypatch.setattr(asking, "MAX_TIME", 0.05)
    with pytest.raises(StoreUnavailable, match="ask for a shorter time"):
        await ask(lambda question: question.row(ENDLESS))

    def in_python(question):
        while True:
            question.check()

    with pytest.raises(StoreUnavailable, match="ask for a shorter time"):
        await ask(in_python)


async def test_questions_wait_for_each_other(ask):
    running: set[int] = set()
    most: list[int] = []

    def answer(question):
        running.add(threading.get_ident())
        most.append(len(running))
        time.sleep(0.02)
        running.discard(threading.get_ident())

    async with trio.open_nursery() as nursery:
        for _ in range(4 * MAX_QUESTIONS):
            nursery.start_soon(ask, answer)
    assert max(most) == MAX_QUESTIONS


async def test_a_question_cannot_write(ask):
    for statement in ("delete from records", "create table t (x)", "pragma user_version = 7"):
        with pytest.raises(StoreUnavailable):
            await ask(lambda question, statement=statement: question.row(statement))


async def test_what_is_asked_at_once_is_of_one_moment(ask, path):
    writer = sqlite3.connect(path)
    count = "select count(*) from sessions"

    def answer(question):
        first = question.row(count)
        done = threading.Thread(target=insert)
        done.start()
        done.join()
        return first, question.row(count)

    def insert():
        with sqlite3.connect(path) as other:
            other.execute("insert into sessions (source, name, last) values ('', '', 0)")
        other.close()

    assert await ask(answer) == ((0,), (0,))
    assert await ask(lambda question: question.row(count)) == (1,)
    writer.close()


async def test_damage_is_told(ask, path, damages):
    path.write_bytes(b"rubbish" * 1000)
    with pytest.raises(StoreUnavailable, match="damaged"):
        await ask(lambda question: question.row("select count(*) from records"))
    assert len(damages) == 1


async def test_without_a_database_there_is_no_answer(tmp_path):
    asked = Asking(tmp_path / "none", lambda error: None)
    with pytest.raises(StoreUnavailable, match="is being made"):
        await asked.ask(lambda question: question.row("select 1"))
    asked.close()
