"""The time that is left: from steps and pauses apart, so that pictures in between do not make it lie."""

from __future__ import annotations

from train.progress import Clock


def run(total, every, step_seconds, pause_seconds, first=10.0):
    """(step, told, true) for each step of a run whose first step is slow and which pauses after every `every`."""
    now, found = 0.0, []
    clock = Clock(total, now=lambda: now)
    ends, time = [], 0.0
    for step in range(1, total + 1):
        time += first if step == 1 else step_seconds
        time += pause_seconds if step % every == 0 else 0
        ends.append(time)
    for step, end in enumerate(ends, 1):
        now = end
        paused = pause_seconds if step % every == 0 else 0.0
        told = clock.left({"step": step, "paused": paused, "pauses_left": total // every - step // every})
        found.append((step, told, ends[-1] - end))
    return found


def test_it_is_exact_once_a_pause_has_been_seen():
    for step, told, true in run(total=40, every=10, step_seconds=2.0, pause_seconds=30.0)[9:]:
        hours, minutes, seconds = (int(part) for part in told.removesuffix(" left").split(":"))
        assert 3600 * hours + 60 * minutes + seconds == int(true), step


def test_before_anything_is_known_it_says_nothing():
    assert run(total=3, every=5, step_seconds=1.0, pause_seconds=0.0)[0][1] == "-:--:-- left"
    assert run(total=1, every=5, step_seconds=1.0, pause_seconds=0.0)[0][1] == "0:00:00 left"
    resumed = Clock(100, now=iter((5.0, 7.0)).__next__)
    assert resumed.left({"step": 51}) == "-:--:-- left"
    assert resumed.left({"step": 52}) == "0:01:36 left"
