"""Nobody sees the console, or its websocket, without the token."""

import pytest
from console_browser import dial, enter, get
from websockets.exceptions import InvalidStatus

from real.console_guard import LOOPBACK, VARIABLE, Guard, announce, choose_token, serve_guarded
from vla_rl.errors import UserError

TOKEN = "correct horse battery".replace(" ", "-")


@pytest.fixture(scope="module")
def port():
    server = serve_guarded(Guard(TOKEN), "127.0.0.1", 0)
    yield server.get_port()
    server.stop()


def refused(port, **how):
    with pytest.raises(InvalidStatus) as caught:
        dial(port, **how)
    return caught.value.response.status_code


@pytest.mark.parametrize(
    "path", ["/", "/index.html", "/?token=", "/?token=wrong-but-long-enough", "/?token=%ff%00", "/../x"]
)
def test_a_page_without_the_token_is_refused(port, path):
    status, headers, body = get(port, path)
    assert status == 401 and "Set-Cookie" not in headers and b"viser" not in body


@pytest.mark.parametrize(
    "cookie", ["", "vla_rl_console=1", ";;=;", "{name}=wrong", "{name}=\xe9", "{name}={token}"]
)
def test_a_cookie_that_is_not_ours_opens_nothing(port, cookie):
    cookie = cookie.format(name=Guard(TOKEN).cookie, token=TOKEN)
    assert get(port, Cookie=cookie)[0] == 401
    assert refused(port, cookie=cookie) == 401


def test_the_token_gives_a_cookie_and_the_page_and_the_websocket(port):
    status, headers, _ = get(port, f"/?token={TOKEN}")
    assert status == 303 and headers["Location"] == "/"  # the token leaves the address bar
    assert "HttpOnly" in headers["Set-Cookie"] and TOKEN not in headers["Set-Cookie"]
    cookie = enter(port, TOKEN)
    status, headers, body = get(port, Cookie=f"other=1; {cookie}")
    assert status == 200 and b"<html" in body[:500].lower()
    assert headers["X-Frame-Options"] == "DENY" and headers["Referrer-Policy"] == "no-referrer"
    with dial(port, cookie, origin=f"http://127.0.0.1:{port}") as socket:
        assert socket.recv(timeout=10)


def test_a_foreign_page_cannot_use_the_cookie(port):
    cookie = enter(port, TOKEN)
    for origin in ("http://elsewhere.example", f"http://127.0.0.1:{port + 1}", "null"):
        assert refused(port, cookie=cookie, origin=origin) == 403
    assert refused(port, origin=f"http://127.0.0.1:{port}") == 401


def test_the_websocket_takes_no_token_in_its_address(port):
    from websockets.sync.client import connect

    with pytest.raises(InvalidStatus, match="401"):
        connect(f"ws://127.0.0.1:{port}/?token={TOKEN}")


def test_what_cannot_be_served_is_named(port):
    with pytest.raises(UserError, match=f"port={port}"):
        serve_guarded(Guard(TOKEN), "127.0.0.1", port)
    with pytest.raises(UserError, match="has 5 characters, needs 16"):
        Guard("short")


def test_the_token_comes_from_the_configuration_the_environment_or_is_new(monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "from-the-environment")
    assert choose_token("from-the-configuration") == ("from-the-configuration", False)
    assert choose_token(None) == ("from-the-environment", False)
    monkeypatch.delenv(VARIABLE)
    token, fresh = choose_token(None)
    assert fresh and token != choose_token(None)[0] and Guard(token)
    announce("127.0.0.1", 1234, TOKEN, fresh=False)
    assert TOKEN not in capsys.readouterr().out
    announce("0.0.0.0", 1234, token, fresh=True)
    said = capsys.readouterr().out
    assert f":1234/?token={token}" in said and "warning: host=0.0.0.0" in said
    assert "0.0.0.0" not in LOOPBACK
