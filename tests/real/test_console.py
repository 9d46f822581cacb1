"""The console of a running arm: as a page in a real browser, and as threads that nothing stops."""

import re
import shutil
import time

import numpy as np
import pytest
from console_browser import Browser
from diagnostic_msgs.msg import DiagnosticStatus
from test_console_teleop import eventually

import real.console
from real.console import Console, run
from real.console_scene import ArmScene, visuals
from real.console_streams import watch
from real.contract import load_contract
from real.kinematics import ArmModel, urdf_path
from real.ros2 import Link
from real.safety_node import STATE, describe
from vla_rl.errors import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRAWN = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def console(robot):
    link = Link("spectator")
    console = Console(watch(load_contract("sim_arm"), link), port=0)
    yield console
    console.close()
    console.close()
    link.close()


@pytest.fixture
def judge(robot):
    """What the safety node says, heard by a node of its own."""
    link = Link("judge")
    state = link.listen(STATE, DiagnosticStatus)
    assert state.wait(0, 20.0)
    yield lambda: describe(state)
    link.close()


@pytest.fixture
def page(console):
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=DRAWN)
        page = browser.new_page(viewport={"width": 900, "height": 500})
        page.set_default_timeout(60_000)
        page.goto(f"http://127.0.0.1:{console.port}/?token={console.token}")
        yield page
        browser.close()


def test_a_browser_shows_the_safety_state_stops_the_arm_and_resets_it(console, judge, page, tmp_path):
    from playwright.sync_api import TimeoutError

    def press(name):
        page.get_by_role("button", name=name, exact=True).click()

    def reset():
        answers = []
        for _ in range(10):  # refused while joint states are late, which they are on a busy machine
            press("Reset the stop ...")
            press("The cell is clear: reset")
            try:
                page.get_by_text(re.compile("^(HOLDING|RUNNING)$")).wait_for(timeout=5_000)
                return
            except TimeoutError:
                answers += page.get_by_text("Not reset").locator("..").all_inner_texts()
        raise AssertionError(answers)

    press("STOP")  # before anything was started: shown as such, and it stays stopped
    page.get_by_text(re.compile("^(NOT STARTED|STOPPED)$")).wait_for()
    assert "token" not in page.url
    page.get_by_text("camera agentview").wait_for()
    reset()
    eventually(lambda: judge()[0] != "stopped")
    press("STOP")
    eventually(lambda: judge() == ("stopped", "stop button"))
    page.get_by_text("stop button").wait_for()
    press("Reset the stop ...")
    press("Stay stopped")
    time.sleep(0.5)
    assert judge()[0] == "stopped"
    picture = tmp_path / "console.png"
    page.screenshot(path=picture)
    assert len(np.unique(_pixels(picture).reshape(-1, 3), axis=0)) > 200  # an arm, not a blank page
    reset()
    eventually(lambda: judge()[0] != "stopped")


def _pixels(path):
    import cv2

    return cv2.imread(str(path))


def test_the_arm_is_drawn_where_it_is(console):
    contract = load_contract("sim_arm")
    joints = np.array(contract.home) + 0.1
    scene = ArmScene(console.server, contract)
    scene.update(
        dict(zip(contract.joints, joints, strict=True)) | {"panda_finger_joint1": 0.02, "other": 1.0}
    )
    place, posture = ArmModel(contract).pose(joints)
    drawn = scene.tool_pose()
    np.testing.assert_allclose(drawn[0], place, atol=1e-9)
    np.testing.assert_allclose(drawn[1], posture, atol=1e-9)
    assert len(scene.parts) == len(visuals(urdf_path(contract.urdf))) == 11


@pytest.mark.parametrize("robot_", ["fr3", "ur5e", "so101"])
def test_an_arm_without_meshes_is_drawn_as_its_capsules_or_joints(console, robot_):
    contract = load_contract(robot_)
    scene = ArmScene(console.server, contract)
    assert len(scene.parts) == (len(contract.collision.capsules) or scene.model.njoints)


def test_what_fails_is_said_once_and_the_rest_goes_on(console, monkeypatch, capsys):
    calls = []

    def broken():
        calls.append(1)
        raise ValueError("broken picture")

    monkeypatch.setattr(real.console, "AGAIN", 0.02)
    console.also.append(broken)
    eventually(lambda: len(calls) > 3)
    console.also.remove(broken)
    assert capsys.readouterr().err.count("ValueError: broken picture") == 1
    before = set(console.server.get_clients())
    browser = Browser(console)
    eventually(lambda: set(console.server.get_clients()) - before)
    heard = console.panel._html
    heard.clear()
    eventually(lambda: heard)  # it speaks to browsers again
    browser.close()


def test_the_command_watches_and_ends(robot, monkeypatch, capsys):
    monkeypatch.setenv("VLA_RL_CONSOLE_TOKEN", "short")
    with pytest.raises(UserError, match="token has 5 characters"):
        run(["env.robot=sim_arm", "port=0", "seconds=0.2"])
    monkeypatch.delenv("VLA_RL_CONSOLE_TOKEN")
    assert run(["env.robot=sim_arm", "port=0", "seconds=0.2"]) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out
