"""Signals: the first one stops, a second one ends at once, and nothing can hold a process."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

PROGRAM = """
import ctypes, sys, time
from bdia_exp import stopping
stopping.GRACE, stopping.TWICE = {grace}, 0.2
stopping.listen()
try:
    print("ready", flush=True)
    {work}
except KeyboardInterrupt as error:
    stopping.tell(error.number)
    sys.exit(128 + error.number)
"""
IDLE = "time.sleep(60)"
IN_C = "lock = ctypes.CDLL(None).pthread_mutex_lock; mutex = bytes(64); lock(mutex); lock(mutex)"
"""No signal ends this wait, as none ends the wait for another process."""


def ended(work: str, *signals: signal.Signals, grace: float = 60, **more) -> tuple[int, str]:
    """The exit status of a program that gets these signals, and what it said."""
    program = PROGRAM.format(work=work, grace=grace)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **more.pop("env", {})},
        preexec_fn=partial(signal.signal, signal.SIGINT, more.pop("sigint", signal.SIG_DFL)),
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    for number in signals:
        process.send_signal(number)
        time.sleep(0.4)
    _, said = process.communicate(timeout=20)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_with_one_sentence(number):
    status, said = ended(IDLE, number)
    assert status == 128 + number
    assert said == f"\nstopped by {number.name}; run the same command again to continue\n"


def test_a_process_of_a_launcher_leaves_the_telling_to_it():
    assert ended(IDLE, signal.SIGTERM, env={"BDIA_EXP_LAUNCHER": "1"}) == (143, "")


def test_a_wait_that_takes_no_signal_ends_after_a_while_or_at_the_second_signal():
    for signals, grace in [((signal.SIGTERM,), 0.5), ((signal.SIGTERM, signal.SIGTERM), 60)]:
        status, said = ended(IN_C, *signals, grace=grace)
        assert status == 143
        assert said.count("stopped by SIGTERM") == 1


def test_a_signal_that_is_ignored_stays_ignored():
    """As under nohup, and in the background of a script."""
    assert ended("time.sleep(1)", signal.SIGINT, sigint=signal.SIG_IGN) == (0, "")
