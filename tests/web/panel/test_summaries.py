"""Equal questions are asked once, slow ones keep nobody waiting, and nobody's are not asked."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from hyperlog.web.panel.summaries import AGE_FACTOR, MAX_AGE, MAX_KEPT, Summaries


class Slow:
    """Answers that take a second each."""

    def __init__(self):
        self.asked = []
        self.most = 0
        self._now = 0

    def question(self, name):
        async def ask():
            self.asked.append(name)
            self._now += 1
            self.most = max(self.most, self._now)
            try:
                await trio.sleep(1)
            finally:
                self._now -= 1
            return f"answer {len(self.asked)}"

        return name, ask


async def test_equal_questions_are_asked_once(autojump_clock):
    slow, summaries, answers = Slow(), Summaries(), []

    async def ask():
        answers.append(await summaries.answer(*slow.question("a")))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask)
    assert answers == ["answer 1"] * 20


async def test_an_answer_is_kept_for_a_multiple_of_what_it_took(autojump_clock):
    slow, summaries = Slow(), Summaries()
    await summaries.answer(*slow.question("a"))
    await trio.sleep(AGE_FACTOR - 0.1)
    assert await summaries.answer(*slow.question("a")) == "answer 1"
    await trio.sleep(0.2)
    assert await summaries.answer(*slow.question("a")) == "answer 2"


async def test_an_answer_is_not_kept_for_long(autojump_clock):
    summaries, taken = Summaries(), []

    async def ask():
        taken.append(1)
        await trio.sleep(MAX_AGE)
        return len(taken)

    assert await summaries.answer("a", ask) == 1
    await trio.sleep(MAX_AGE + 0.1)
    assert await summaries.answer("a", ask) == 2


async def test_different_questions_wait_for_each_other(autojump_clock):
    slow, summaries = Slow(), Summaries()
    async with trio.open_nursery() as nursery:
        for name in "abcd":
            nursery.start_soon(summaries.answer, *slow.question(name))
    assert len(slow.asked) == 4
    assert slow.most == 1


async def test_when_the_one_who_asks_leaves_another_asks(autojump_clock):
    slow, summaries, answers = Slow(), Summaries(), []

    async def ask():
        answers.append(await summaries.answer(*slow.question("a")))

    async with trio.open_nursery() as nursery:
        leaving = trio.CancelScope()

        async def leave():
            with leaving:
                await ask()

        nursery.start_soon(leave)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask)
        nursery.start_soon(ask)
        await trio.sleep(0.5)
        leaving.cancel()
    assert answers == ["answer 2"] * 2
    assert trio.current_time() == pytest.approx(1.5, abs=0.01)


async def test_a_failure_is_the_asker_s_and_the_next_is_asked_again(autojump_clock):
    slow, summaries = Slow(), Summaries()

    async def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await summaries.answer("a", fail)
    assert await summaries.answer(*slow.question("a")) == "answer 1"


async def test_what_is_kept_has_a_limit(autojump_clock):
    summaries = Summaries()

    async def ask():
        await trio.sleep(0.001)
        return 1

    for number in range(MAX_KEPT + 10):
        await summaries.answer(number, ask)
    assert len(summaries._kept) == MAX_KEPT
