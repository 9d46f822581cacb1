"""A browser takes the arm, moves it, and may vanish: then the arm is still and the policy stays away."""

import time

import numpy as np
import pytest
from console_browser import Browser
from test_joy import Up

from real.teleop.console import Console, Drag
from real.teleop.console_hold import TakeOver
from vla_rl.errors import UserError
from vla_rl.keys import STATE
from vla_rl.policies.intervened import Intervened

TCP = slice(7, 10)
A, B = 1, 2


def eventually(what, seconds=10.0):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


@pytest.fixture
def hold():
    hold = TakeOver(max_age=0.5, clock=lambda: hold.now)
    hold.now = 100.0
    return hold


def test_nobody_has_the_arm_at_first(hold):
    hold.heard(A)
    hold.gone(A)
    assert hold.engaged() == (False, False, False) and hold.state() == ("free", None)
    assert not hold.hand_back(A)


def test_one_browser_has_the_arm_until_it_hands_it_back(hold):
    assert hold.take(A) and not hold.take(B) and not hold.hand_back(B)
    assert hold.engaged() == (True, True, True) and hold.engaged() == (True, True, False)
    assert hold.hand_back(A) and hold.engaged() == (False, False, False)
    assert hold.take(B) and hold.engaged() == (True, True, True)


@pytest.mark.parametrize("leave", ["silent", "gone", "failed"])
def test_a_browser_that_vanishes_keeps_the_arm_still_and_the_policy_away(hold, leave):
    hold.take(A)
    hold.now += 0.4
    hold.heard(A)
    hold.now += 0.4
    assert hold.engaged()[0]
    if leave == "silent":
        hold.now += 0.2
    else:
        hold.gone(A) if leave == "gone" else hold.lose()
    assert hold.engaged()[:2] == (False, True) and hold.state() == ("lost", A)
    hold.heard(A)  # back again: it must take over anew
    hold.now += 60.0
    assert hold.engaged()[:2] == (False, True)
    assert hold.hand_back(B)  # anybody may
    assert hold.engaged()[:2] == (False, False)


def test_who_has_lost_the_arm_or_finds_it_lost_may_take_it(hold):
    hold.take(A)
    hold.now += 1.0
    assert hold.take(B) and hold.engaged() == (True, True, True)
    hold.heard(A)
    hold.gone(A)  # an old browser's end is not the new one's
    assert hold.engaged()[0]


@pytest.fixture(scope="module")
def console(env):
    console = Console(env, port=0)
    yield console
    console.view.close()
    env.outcome = None


@pytest.fixture
def browser(console):
    before = set(console.view.server.get_clients())
    browser = Browser(console.view)
    fresh = eventually(lambda: set(console.view.server.get_clients()) - before)
    browser.client = console.view.server.get_clients()[fresh.pop()]
    yield browser
    browser.close()
    eventually(lambda: console.hold.state()[0] != "held")
    console.hand_back(browser.client)


def drive(env, console, steps, before=lambda number: None):
    observation, _ = env.reset(seed=1)
    policy = Intervened(Up(env), console)
    state, out = policy.initial_state(1), []
    for number in range(steps):
        before(number)
        output, state = policy.act(observation, state)
        observation, *rest = env.step(output["action"])
        out.append((output, observation, rest))
        if rest[1].item() or rest[2].item():
            break
    return out


def test_a_held_button_moves_the_arm_and_stops_with_it(env, console, browser):
    me = browser.client.client_id

    def script(number):
        if number == 4:
            assert console.take(browser.client)
        if 8 <= number < 14:
            console.press(me, 1, -1)
        if number == 15:
            console.squeeze(me, -1.0)
        if number == 30:
            assert console.hand_back(browser.client)

    steps = drive(env, console, 34, script)
    taken = [bool(output["intervention"]) for output, _, _ in steps]
    assert taken == [4 <= n < 30 for n in range(34)]
    actions = np.array([output["action"][0].numpy() for output, _, _ in steps])
    assert (actions[4:8, :3] == 0).all()  # taken over at rest: nothing moves
    np.testing.assert_allclose(actions[9, :3], [0.0, -0.5, 0.0])
    assert (actions[24:30, :3] == 0).all() and actions[24, -1] == -1.0
    assert steps[29][1][STATE][0, TCP][1] < steps[7][1][STATE][0, TCP][1] - 0.03


def test_the_tool_goes_where_the_handle_is_pulled_and_rests_when_it_is_let_go(env, console, browser):
    start = np.array([0.3, 0.2, 0.1]), np.eye(3)  # wherever it was grabbed

    def script(number):
        if number == 2:
            console.take(browser.client)
        if number == 4:
            console._drag = Drag(start, (start[0] + [0.0, 0.05, 0.03], np.eye(3)))
        if number == 20:
            console._drag.now = start[0] + [0.0, 5.0, 0.0], np.eye(3)  # far away: the leash is short
        if number == 22:
            console._drag = None

    steps = drive(env, console, 30, script)
    places = np.array([observation[STATE][0, TCP].numpy() for _, observation, _ in steps])
    np.testing.assert_allclose(places[19] - places[3], [0.0, 0.05, 0.03], atol=0.008)
    actions = np.array([output["action"][0].numpy() for output, _, _ in steps])
    assert np.abs(actions[4:, :3]).max() <= 0.5 + 1e-6 and (actions[22:, :3] == 0).all()


@pytest.mark.parametrize("leave", ["freeze", "close"])
def test_a_real_browser_that_goes_away_while_it_pulls(env, console, browser, leave):
    start = np.zeros(3), np.eye(3)
    console.take(browser.client)
    console._drag = Drag(start, (start[0] + [0.0, 0.0, 5.0], np.eye(3)))
    assert console.command({STATE: env.reset(seed=1)[0][STATE]}, None)[1].item()
    eventually(lambda: console.hold.state()[0] == "held", 0.1)
    getattr(browser, leave)()
    eventually(lambda: console.hold.state()[0] == "lost")
    steps = drive(env, console, 8)
    assert all(output["intervention"].item() for output, _, _ in steps)
    assert all((output["action"][0, :3] == 0).all() for output, _, _ in steps)
    console.press(browser.client.client_id, 0, 1)  # too late
    assert (drive(env, console, 3)[-1][0]["action"][0, :3] == 0).all()
    assert console.hand_back(browser.client)
    assert not drive(env, console, 3)[-1][0]["intervention"].item()


@pytest.mark.parametrize("outcome", ["success", "failure", "discard"])
def test_a_button_says_how_it_went(env, console, outcome):
    before = len(env.results)
    steps = drive(env, console, 8, lambda number: number == 3 and console.say(outcome))
    _, terminated, truncated, info = steps[-1][2]
    assert (
        len(steps) == 4
        and terminated.item() == (outcome != "discard")
        and info["discarded"].item() != terminated.item()
    )
    assert env.results[before:] == {"success": [True], "failure": [False], "discard": []}[outcome]


def test_a_button_takes_the_arm_back(env, console):
    env.rewind_seconds = 0.5
    steps = drive(env, console, 24, lambda number: number == 20 and console.say("rewind"))
    assert steps[20][2][-1]["rewound"].item() > 5 and env.steps < 24 - 5
    heights = [float(observation[STATE][0, TCP][2]) for _, observation, _ in steps]
    assert heights[20] < heights[19] - 0.02  # it had gone up


def test_what_fails_in_the_browser_s_doing_ends_no_episode(env, console, browser, capsys):
    def script(number):
        if number == 1:
            console.take(browser.client)
            console._drag = Drag((np.zeros(3), np.eye(3)), (np.zeros(2), np.eye(3)))

    steps = drive(env, console, 4, script)
    assert len(steps) == 4 and console.hold.state()[0] == "lost" and "Traceback" in capsys.readouterr().err
    assert (steps[-1][0]["action"][0, :3] == 0).all() and steps[-1][0]["intervention"].item()
    console.hand_back(browser.client)


@pytest.mark.parametrize("change", [{"speed": 0.0}, {"reach": -1.0}, {"max_age": 0.0}])
def test_settings_out_of_range_are_named(env, change):
    with pytest.raises(UserError, match=f"teleop.{next(iter(change))}"):
        Console(env, port=0, **change)
