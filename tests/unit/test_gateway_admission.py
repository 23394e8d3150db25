"""Slots and their queue, at the edges where two things happen in one moment."""

import asyncio
import random

import pytest

from baton_api.errors import NoCapacity, Overloaded
from baton_gateway.admission import Admission


async def hold(admission: Admission, until: asyncio.Event) -> None:
    await admission.enter()
    try:
        await until.wait()
    finally:
        admission.leave()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_slot_that_comes_while_its_waiter_is_cancelled_goes_to_the_next() -> None:
    admission, first_done, others_done = Admission(1, 9, 5.0), asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(hold(admission, first_done))
    await settle()
    second, third = (asyncio.create_task(hold(admission, others_done)) for _ in range(2))
    await settle()
    first_done.set()
    await first  # the slot is the second's now, which has not run yet
    second.cancel()
    await settle()
    assert second.cancelled() and admission.in_flight == 1
    others_done.set()
    await third
    admission.check_quiescent()


async def test_a_cancelled_waiter_leaves_the_queue() -> None:
    admission, done = Admission(1, 1, 5.0), asyncio.Event()
    first = asyncio.create_task(hold(admission, done))
    await settle()
    second = asyncio.create_task(hold(admission, done))
    await settle()
    with pytest.raises(Overloaded):
        await hold(admission, done)
    second.cancel()
    await settle()
    third = asyncio.create_task(hold(admission, done))
    await settle()
    done.set()
    await asyncio.gather(first, third)
    admission.check_quiescent()


async def test_without_a_queue_nobody_waits_and_without_patience_not_for_long() -> None:
    done = asyncio.Event()
    for admission, expected in ((Admission(1, 0, 5.0), Overloaded), (Admission(1, 1, 0.0), NoCapacity)):
        first = asyncio.create_task(hold(admission, done))
        await settle()
        with pytest.raises(expected):
            await hold(admission, asyncio.Event())
        first.cancel()
        await settle()
        admission.check_quiescent()


@pytest.mark.parametrize("seed", range(20))
async def test_however_holders_come_leave_and_give_up_no_slot_is_lost(seed: int) -> None:
    dice, admission, running = random.Random(seed), Admission(3, 5, 0.01), 0

    async def one() -> None:
        nonlocal running
        await admission.enter()
        running += 1
        assert running <= 3
        try:
            await asyncio.sleep(dice.random() * 0.01)
        finally:
            running -= 1
            admission.leave()

    tasks = []
    for _ in range(40):
        tasks.append(asyncio.create_task(one()))
        if dice.random() < 0.3:
            dice.choice(tasks).cancel()
        await asyncio.sleep(dice.random() * 0.003)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), Overloaded, NoCapacity, asyncio.CancelledError}
    admission.check_quiescent()
