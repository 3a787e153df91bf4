"""The lab's one thread: jobs take turns, and a job that nobody waits for stops."""

import threading
from queue import Queue

from npllm.lab.worker import Cancelled, Job, Worker


def job(name, work, arrived: Queue) -> Job:
    return Job(("tab", name), work, lambda item: arrived.put((name, item)))


def test_jobs_take_turns():
    worker, arrived, gate = Worker(), Queue(), threading.Event()

    def waiting(tap):
        gate.wait(10)
        yield {"n": 0}

    def counting(tap):
        for n in range(3):
            yield {"n": n}

    worker.submit(job("first", waiting, arrived))
    for name in "ab":
        worker.submit(job(name, counting, arrived))
    gate.set()
    came = [arrived.get(timeout=10) for _ in range(10)]
    assert [(name, None if item is None else item["n"]) for name, item in came] == [
        ("first", 0),
        ("a", 0),
        ("b", 0),
        ("first", None),
        ("a", 1),
        ("b", 1),
        ("a", 2),
        ("b", 2),
        ("a", None),
        ("b", None),
    ]


def test_a_newer_job_of_the_same_name_cancels_the_older_at_its_next_tapped_value():
    worker, arrived, begun, gate = Worker(), Queue(), threading.Event(), threading.Event()
    ended = []

    def older(tap):
        try:
            begun.set()
            gate.wait(10)
            tap("layers.0.q", None)
            ended.append("the pass went on")
            yield {}
        finally:
            ended.append("cleaned up")

    def newer(tap):
        yield {"tapped": tap("layers.0.q", 5)}

    worker.submit(job("run", older, arrived))
    assert begun.wait(10)
    worker.submit(job("other", newer, arrived))
    worker.submit(job("run", newer, arrived))
    gate.set()
    came = [arrived.get(timeout=10) for _ in range(5)]
    assert isinstance(came[0][1], Cancelled)
    assert came[1:] == [("other", {"tapped": 5}), ("run", {"tapped": 5}), ("other", None), ("run", None)]
    assert ended == ["cleaned up"]
    assert worker.latest == {}


def test_a_job_that_is_cancelled_between_two_items_cleans_up():
    arrived, ended = Queue(), []

    def work(tap):
        try:
            yield {"n": 0}
            yield {"n": 1}
        finally:
            ended.append(threading.current_thread())

    one = job("run", work, arrived)
    assert one.step()
    one.cancel()
    assert not one.step()
    assert ended == [threading.current_thread()]
    assert [type(item) for _, item in arrived.queue] == [dict, Cancelled]


def test_an_error_ends_its_job_only():
    worker, arrived = Worker(), Queue()

    def broken(tap):
        raise ValueError("wrong")
        yield

    def fine(tap):
        yield {}

    worker.submit(job("a", broken, arrived))
    worker.submit(job("b", fine, arrived))
    (_, error), (_, item), (_, end) = (arrived.get(timeout=10) for _ in range(3))
    assert (str(error), item, end) == ("wrong", {}, None)


def test_a_job_is_cancelled_though_an_older_one_of_its_name_has_ended():
    worker, arrived, gates = Worker(), Queue(), [threading.Event(), threading.Event()]
    begun = [threading.Event(), threading.Event()]

    def work(which):
        def items(tap):
            yield from [{}] * which  # the newer one's first turn, after which the older one ends
            begun[which].set()
            gates[which].wait(10)
            yield {}

        return items

    older, newer = job("run", work(0), arrived), job("run", work(1), arrived)
    worker.submit(older)
    assert begun[0].wait(10)
    worker.submit(newer)
    gates[0].set()
    assert begun[1].wait(10)
    worker.submit(job("run", lambda tap: iter([]), arrived))
    assert newer.is_cancelled
    gates[1].set()
