"""A network of its own: the box in one namespace, two devices in others, a bridge between them.

Needs root and iproute2; the namespaces are made and removed here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from daemons import START_SECONDS, install_bundle

from appliance.home import Home
from appliance.model.bundle import Bundle
from appliance.store import Store
from appliance.store.owner import set_password

pytestmark = pytest.mark.box

BOX = "10.77.0.1"
ADDRESSES = {"a": "10.77.0.2", "b": "10.77.0.3"}
# What every program on a device begins with: the box by its name, which no name server knows, as was found.
PRELUDE = """
import json, socket, ssl, sys, time
import httpx, openai
given = json.loads(sys.argv[1])
resolve = socket.getaddrinfo
def look_up(host, *args, **kwargs):
    return resolve(given["address"] if host == given["server"] else host, *args, **kwargs)
socket.getaddrinfo = look_up
trust = ssl.create_default_context(cadata=given["ca"]) if given["ca"] else ssl.create_default_context()
base = f"https://{given['server']}:{given['port']}"
def client():
    http = openai.DefaultHttpxClient(verify=trust, trust_env=False)
    url, key = base + "/v1", given["key"]
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, http_client=http, timeout=60)
LONG = dict(model="shammah", messages=[{"role": "user", "content": "Tell me a long tale."}], max_tokens=2000,
            temperature=0, logit_bias={"2": -100})
SHORT = dict(model="shammah", messages=[{"role": "user", "content": "Hello!"}], max_tokens=4)
def say(**what):
    print(json.dumps(what), flush=True)
"""


class Lan:
    """The namespaces, and the daemon in one of them."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.tag = f"sh{os.getpid() % 10000}"
        self.daemon: subprocess.Popen[bytes] | None = None
        self.found: dict[str, Any] = {}

    def namespace(self, name: str) -> str:
        return f"{self.tag}-{name}"

    def up(self) -> None:
        for name in ("srv", "a", "b"):
            ip("netns", "add", self.namespace(name))
            self.ip("srv" if name == "srv" else name, "link", "set", "lo", "up")
        self.ip("srv", "link", "add", "br0", "type", "bridge")
        self.ip("srv", "addr", "add", f"{BOX}/24", "dev", "br0")
        self.ip("srv", "link", "set", "br0", "up")
        for name, address in ADDRESSES.items():
            peer = ("peer", "name", "eth0", "netns", self.namespace(name))
            self.ip("srv", "link", "add", f"to-{name}", "type", "veth", *peer)
            self.ip("srv", "link", "set", f"to-{name}", "master", "br0", "up")
            self.ip(name, "addr", "add", f"{address}/24", "dev", "eth0")
            self.ip(name, "link", "set", "eth0", "up")

    def down(self) -> None:
        if self.daemon is not None:
            self.daemon.kill()
            self.daemon.wait()
        for name in ("srv", "a", "b"):
            subprocess.run(["ip", "netns", "del", self.namespace(name)], check=False, capture_output=True)

    def ip(self, name: str, *arguments: str) -> None:
        ip("-n", self.namespace(name), *arguments)

    def start(self) -> None:
        with (self.home.root / "daemon.out").open("ab") as out:
            self.daemon = subprocess.Popen(
                self.command("srv", "-m", "appliance.cli", "daemon", "--bind", "0.0.0.0:8080"),
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "SHAMMAH_HOME": str(self.home.root)},
            )
        deadline = time.monotonic() + START_SECONDS
        ask = "import httpx; print(httpx.get('http://127.0.0.1:8080/ready', trust_env=False).status_code)"
        while self.run("srv", ask, check=False).stdout.strip() != "200":
            assert time.monotonic() < deadline and self.daemon.poll() is None, self.log
            time.sleep(0.3)

    @property
    def log(self) -> str:
        return (self.home.root / "daemon.out").read_text(errors="replace")

    def command(self, name: str, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace(name), sys.executable, *arguments]

    def run(
        self, name: str, program: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(name, "-c", program, *arguments), capture_output=True, text=True, timeout=180
        )
        if check:
            assert done.returncode == 0, f"{done.stderr}\n{self.log[-3000:]}"
        return done

    def device(self, name: str, program: str, key: str, **other: Any) -> dict[str, Any]:
        """What a program on a device says last."""
        given = json.dumps({**self.found, "key": key, **other})
        said = self.run(name, PRELUDE + program, given).stdout.splitlines()
        return dict(json.loads(said[-1]))

    def begin(self, name: str, program: str, key: str) -> subprocess.Popen[str]:
        given = json.dumps({**self.found, "key": key})
        return subprocess.Popen(
            self.command(name, "-c", PRELUDE + program, given), stdout=subprocess.PIPE, text=True
        )

    def cli(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "appliance.cli", *arguments]
        env = {**os.environ, "SHAMMAH_HOME": str(self.home.root)}
        subprocess.run(command, env=env, check=True, capture_output=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


DISCOVER = """
import json, sys, time
from zeroconf import ServiceBrowser, Zeroconf
found, began = {}, time.monotonic()
zeroconf = Zeroconf(interfaces=[sys.argv[1]])
def change(zeroconf, service_type, name, state_change):
    if state_change.name == "Added":
        found[service_type] = name
browser = ServiceBrowser(zeroconf, ["_http._tcp.local.", "_https._tcp.local."], handlers=[change])
while len(found) < 2 and time.monotonic() < began + 20:
    time.sleep(0.01)
seconds = time.monotonic() - began
info = {kind: zeroconf.get_service_info(kind, name, 10000) for kind, name in found.items()}
zeroconf.close()
print(json.dumps({"seconds": seconds, "services": {
    kind: [item.server, item.port, item.parsed_addresses(), {k.decode(): v.decode() for k, v in
           item.properties.items()}] for kind, item in info.items()}}))
"""


@pytest.fixture(scope="module")
def lan(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lan]:
    home = Home(tmp_path_factory.mktemp("home")).ensure()
    install_bundle(home, bundle)
    home.config.write_text("[lora]\nenabled = false\n")
    made = Lan(home)
    try:
        made.up()
        made.start()
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def key(lan: Lan) -> Callable[..., str]:
    def make(name: str, rate: int | None = None) -> str:
        store = Store.open(lan.home)
        device, secret = store.keys.create(name)
        if rate is not None:
            store.keys.change(device.id, name=name, collect=True, models=None, rate=rate)
        store.close()
        return secret

    return make


def report(what: str) -> None:
    print(f"\n    {what}", end="", flush=True)


def test_before_it_is_set_up_it_neither_serves_nor_announces(lan: Lan) -> None:
    ask = f"import httpx; print(httpx.get('http://{BOX}:8080/trust', trust_env=False).status_code)"
    assert lan.run("a", ask).stdout.strip() == "403"
    silent = DISCOVER.replace("began + 20", "began + 4")
    assert json.loads(lan.run("a", silent, ADDRESSES["a"]).stdout)["services"] == {}


def test_devices_find_it_by_mdns(lan: Lan) -> None:
    store = Store.open(lan.home)
    set_password(store, "correct horse battery")
    store.close()
    for name in ("a", "b"):
        said = json.loads(lan.run(name, DISCOVER, ADDRESSES[name]).stdout)
        services = said["services"]
        assert services["_http._tcp.local."][:3] == ["shammah.local.", 8080, [BOX]]
        assert services["_https._tcp.local."][:3] == ["shammah.local.", 8443, [BOX]]
        assert services["_https._tcp.local."][3]["api"] == "/v1"
        report(f"{name} found shammah.local:8443 after {said['seconds']:.2f} s")
    server, port, (address,), _ = services["_https._tcp.local."]
    lan.found = {"server": server.rstrip("."), "port": port, "address": address, "ca": ""}


def test_tls_works_with_the_installed_authority_and_not_without(lan: Lan, key: Callable[..., str]) -> None:
    secret = key("first")
    fails = """
try:
    httpx.get(base + "/ready", verify=trust, trust_env=False)
except httpx.ConnectError as error:
    say(error=str(error))
"""
    assert "CERTIFICATE_VERIFY_FAILED" in lan.device("a", fails, secret)["error"]
    fetch = f"import httpx; print(httpx.get('http://{BOX}:8080/trust/ca.pem', trust_env=False).text)"
    lan.found["ca"] = lan.run("a", fetch).stdout
    answer = lan.device(
        "a", "say(text=client().chat.completions.create(**SHORT).choices[0].message.content)", secret
    )
    assert answer["text"]
    by_address = """
url = f"https://{given['address']}:{given['port']}/ready"
say(status=httpx.get(url, verify=trust, trust_env=False).status_code)
"""
    assert lan.device("b", by_address, secret)["status"] == 200
    other = lan.device("b", fails, secret, server="box.example.com")
    assert "Hostname mismatch" in other["error"]
    report("shammah.local and 10.77.0.1 are good by the installed authority, another name is not")


def test_keys_are_asked_for_on_the_network_and_not_on_the_box(lan: Lan) -> None:
    ask = """
try:
    client().chat.completions.create(**SHORT)
    say(status=200)
except openai.APIStatusError as error:
    say(status=error.status_code)
"""
    assert lan.device("a", ask, "none")["status"] == 401
    local = PRELUDE.replace("https://{given['server']}:{given['port']}", "http://127.0.0.1:8080") + ask
    done = lan.run("srv", local, json.dumps({**lan.found, "key": "none"}))
    assert json.loads(done.stdout)["status"] == 200


def test_a_forged_header_is_not_believed(lan: Lan) -> None:
    forge = """
headers = {"X-Forwarded-For": "127.0.0.1", "Forwarded": "for=127.0.0.1", "X-Real-IP": "127.0.0.1",
           "Host": "127.0.0.1:8080"}
asked = dict(json=SHORT, headers=headers, verify=trust, trust_env=False)
keyless = httpx.post(base + "/v1/chat/completions", **asked)
login = {**headers, "Origin": "http://127.0.0.1:8080"}
def guess(n):
    forged = {**login, "X-Forwarded-For": f"10.9.9.{n}"}
    wrong = {"password": "wrong"}
    return httpx.post(base + "/login", data=wrong, headers=forged, verify=trust, trust_env=False).status_code
codes = [guess(n) for n in range(8)]
say(keyless=keyless.status_code, codes=codes)
"""
    said = lan.device("b", forge, "none")
    assert said["keyless"] == 401
    assert 429 in said["codes"]  # a new address each time did not make it eight strangers
    store = Store.open(lan.home)
    actors = {entry.actor for entry in store.audit.list(limit=20) if entry.action.startswith("login")}
    store.close()
    assert actors == {ADDRESSES["b"]}


def test_a_limit_is_of_one_device(lan: Lan, key: Callable[..., str]) -> None:
    ask = """
codes = []
with client() as one:
    for _ in range(given["times"]):
        try:
            one.chat.completions.create(**SHORT)
            codes.append(200)
        except openai.RateLimitError as error:
            codes.append(429)
say(codes=codes)
"""
    slow, free = key("slow", rate=2), key("free")
    limited = lan.device("a", ask, slow, times=5)["codes"]
    assert limited[:2] == [200, 200]
    assert 429 in limited[2:]
    assert lan.device("b", ask, free, times=5)["codes"] == [200] * 5
    report(f"a with 2 a minute: {limited}, b meanwhile without refusal")


def test_a_revoked_key_is_cut_off_within_a_second(lan: Lan, key: Callable[..., str]) -> None:
    lost, kept = key("lost"), key("kept")
    listen = """
with client() as one, one.chat.completions.create(**LONG, stream=True) as stream:
    count = 0
    try:
        for chunk in stream:
            count += 1
            if count == 3:
                say(begun=True)
            say(at=time.monotonic())
        say(end="whole", count=count)
    except openai.APIError as error:
        say(end=error.code, message=str(error), at=time.monotonic(), count=count)
try:
    client().chat.completions.create(**SHORT)
    say(end="still served")
except openai.AuthenticationError:
    say(end="refused", at=time.monotonic())
"""
    a, b = lan.begin("a", listen, lost), lan.begin("b", listen, kept)
    try:
        for device in (a, b):
            assert device.stdout is not None
            while "begun" not in device.stdout.readline():
                assert device.poll() is None
        lan.cli("keys", "revoke", "lost")
        revoked = time.monotonic()  # namespaces share the clock
        assert a.stdout is not None
        said = [json.loads(line) for line in a.stdout.read().splitlines()]
        ended = next(item for item in said if "end" in item)
        assert ended["end"] == "invalid_api_key"
        assert said[-1]["end"] == "refused"
        after = ended["at"] - revoked
        report(f"the stream of a ended {after:.2f} s after the command, in the middle of its answer")
        assert after < 1.0
        assert b.stdout is not None
        assert "at" in json.loads(b.stdout.readline())
        assert b.poll() is None
    finally:
        for device in (a, b):
            device.kill()
            device.communicate()


def test_a_lost_link_does_no_harm(lan: Lan, key: Callable[..., str]) -> None:
    secret, other = key("roaming"), key("staying")
    stream = """
with client() as one, one.chat.completions.create(**LONG, stream=True) as stream:
    for count, chunk in enumerate(stream):
        if count == 3:
            say(begun=True)
"""
    ask = "say(text=client().chat.completions.create(**SHORT).choices[0].message.content)"
    device = lan.begin("a", stream, secret)
    try:
        assert device.stdout is not None
        while "begun" not in device.stdout.readline():
            assert device.poll() is None
        lan.ip("srv", "link", "set", "to-a", "down")
        assert lan.device("b", ask, other)["text"]
    finally:
        device.kill()
        device.communicate()
    lan.ip("srv", "link", "set", "to-a", "up")
    assert lan.device("a", ask, secret)["text"]
    found = json.loads(lan.run("a", DISCOVER, ADDRESSES["a"]).stdout)["services"]
    assert found["_https._tcp.local."][2] == [BOX]


def test_a_new_address_is_followed(lan: Lan, key: Callable[..., str]) -> None:
    secret = key("follower")
    lan.ip("srv", "addr", "add", "10.77.0.9/24", "dev", "br0")
    ask = """
deadline = time.monotonic() + 60
while True:
    try:
        say(status=httpx.get("https://10.77.0.9:8443/ready", verify=trust, trust_env=False).status_code)
        break
    except httpx.ConnectError:
        assert time.monotonic() < deadline
        time.sleep(0.3)
"""
    assert lan.device("b", ask, secret)["status"] == 200
    deadline = time.monotonic() + 60
    while set(
        json.loads(lan.run("b", DISCOVER, ADDRESSES["b"]).stdout)["services"].get(
            "_https._tcp.local.", [0, 0, []]
        )[2]
    ) != {BOX, "10.77.0.9"}:
        assert time.monotonic() < deadline
    report("the certificate and the announcement have the new address")


def test_https_only(lan: Lan, key: Callable[..., str]) -> None:
    secret = key("secure")
    lan.home.config.write_text("[lora]\nenabled = false\n[tls]\nplain = false\n")
    assert lan.daemon is not None
    lan.daemon.send_signal(1)
    ask = """
plain = f"http://{given['address']}:8080"
with httpx.Client(trust_env=False) as http:
    deadline = time.monotonic() + 30
    while (page := http.get(plain + "/login")).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    mine = {"Authorization": "Bearer " + given["key"]}
    api = http.post(plain + "/v1/chat/completions", json=SHORT, headers=mine)
    say(page=page.status_code, to=page.headers["location"], api=api.status_code,
        code=api.json()["error"]["code"], trust=http.get(plain + "/trust").status_code,
        safe=client().models.list().data[0].id)
"""
    said = lan.device("a", ask, secret)
    assert (said["page"], said["api"], said["code"], said["trust"]) == (307, 403, "https_required", 200)
    assert said["to"].startswith(f"https://{BOX}:8443/login")
    local = "import httpx; print(httpx.get('http://127.0.0.1:8080/v1/models', trust_env=False).status_code)"
    assert lan.run("srv", local).stdout.strip() == "200"


def test_it_takes_its_name_back_and_stops(lan: Lan) -> None:
    assert lan.daemon is not None
    lan.daemon.terminate()
    assert lan.daemon.wait(30) == 0
    silent = DISCOVER.replace("began + 20", "began + 2")
    assert json.loads(lan.run("b", silent, ADDRESSES["b"]).stdout)["services"] == {}
    assert Path(lan.home.authority).stat().st_mode & 0o777 == 0o600
