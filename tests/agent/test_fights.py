# SPDX-License-Identifier: Apache-2.0
from reconciler.agent.fights import FIGHT, PAUSE_S, WINDOW_S, Fights
from reconciler.resource import Key

KEY, OTHER = Key("sysctl", "net/ipv4/ip_forward"), Key("vip", "20.20.20.1")


def test_a_fight_begins_once_and_its_key_rests_then():
    fights = Fights()
    begun = [fights.mended([KEY], 30.0 * i) for i in range(FIGHT + 2)]
    assert begun == [[]] * (FIGHT - 1) + [[KEY]] + [[], []]
    last = 30.0 * (FIGHT + 1)
    assert fights.rests(KEY, last + PAUSE_S - 1)
    assert not fights.rests(KEY, last + PAUSE_S)


def test_a_key_that_drifts_seldom_never_rests():
    fights = Fights()
    step = WINDOW_S / (FIGHT - 1)
    for i in range(3 * FIGHT):
        assert fights.mended([KEY], step * i) == []
        assert not fights.rests(KEY, step * i)


def test_keys_are_counted_apart():
    fights = Fights()
    for i in range(FIGHT):
        fights.mended([KEY], float(i))
    assert fights.mended([OTHER], float(FIGHT)) == []
    assert not fights.rests(OTHER, float(FIGHT))
    assert fights.rests(KEY, float(FIGHT))
