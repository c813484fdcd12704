# SPDX-License-Identifier: Apache-2.0
import os
import resource
import socket
from contextlib import closing
from pathlib import Path

from reconciler.health.outcome import Verdict
from reconciler.health.prober import Prober
from tests.health.run import LATE_S, outcome, outcomes, said, target, until


def test_accepted(frozen_port):
    """The kernel accepts for a program, so this is as much as a check of TCP can see."""
    found = outcome("tcp", frozen_port)
    assert (found.verdict.name, found.error) == ("OK", "")
    assert 0 < found.latency_s < 10


def test_refused(closed_port):
    assert said("tcp", closed_port) == ("FAILED", "refused")


def test_no_answer():
    """A full backlog: the kernel drops further SYNs."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        assert said("tcp", port, timeout_s=LATE_S) == ("UNREACHED", "no answer within 200 ms")
        for filler in fillers:
            filler.close()


def test_connection_is_reset(serve):
    """Nothing of it stays behind, on neither side."""
    seen = []

    def talk(connection):
        try:
            seen.append(connection.recv(1))
        except ConnectionResetError:
            seen.append("reset")

    port = serve(talk)
    assert outcome("tcp", port).error == ""
    until(lambda: seen)
    assert seen == ["reset"]


def test_ipv6(serve):
    assert said("tcp", serve(lambda connection: None, socket.AF_INET6, "::1"), address="::1") == ("OK", "")


def test_many_at_once_and_each_gets_its_own_answer(frozen_port, closed_port):
    targets = [target("tcp", (frozen_port, closed_port)[i % 2]) for i in range(400)]
    found = outcomes(targets)
    assert {(item.port == frozen_port, result.error) for item, result in found} == {(True, ""), (False, "refused")}


def test_descriptors_are_given_back(frozen_port, closed_port):
    before = len(list(Path("/proc/self/fd").iterdir()))
    outcomes([target("tcp", port) for port in (frozen_port, closed_port)] * 50)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_check_after_check_takes_the_same_socket_and_each_ends_by_a_reset(serve, closed_port):
    ends = []

    def wait_for_the_end(connection):
        try:
            ends.append(connection.recv(1))
        except ConnectionResetError:
            ends.append("reset")

    port = serve(wait_for_the_end)
    numbers, found = set(), []
    with closing(Prober()) as prober:
        for item in [target("tcp", (port, closed_port)[i % 2]) for i in range(6)]:
            prober.start(item)
            numbers |= {run.fd for run in prober._waiting.values()}
            results = []
            until(lambda results=results: results.extend(prober.poll(0.1)) or results)
            found += [outcome.error for _, outcome in results]
        assert found == ["", "refused"] * 3
        until(lambda: len(ends) == 3)
    assert (len(numbers), ends) == (1, ["reset"] * 3)


def test_a_check_that_ran_out_of_time_leaves_nothing_to_the_next_one(frozen_port):
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fill = [socket.socket() for _ in range(8)]
        for sock in fill:
            sock.setblocking(False)
            sock.connect_ex(address)
        with closing(Prober()) as prober:
            for port, expected in ((address[1], "no answer within 200 ms"), (frozen_port, "")):
                prober.start(target("tcp", port, timeout_s=LATE_S if expected else 10.0))
                results = []
                until(lambda results=results: results.extend(prober.poll(0.1)) or results)
                assert [outcome.error for _, outcome in results] == [expected]
        for sock in fill:
            sock.close()


def test_out_of_descriptors_says_nothing_about_the_target(frozen_port):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with closing(Prober()) as prober:
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            prober.start(target("tcp", frozen_port))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        ((_, found),) = prober.poll(0)
    assert (found.verdict, found.error) == (Verdict.NOT_CHECKED, "this node is out of file descriptors")
