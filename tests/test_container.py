"""Dockerfile, compose.yaml and what belongs to them, as files; tests/box runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance import __version__

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))


def _copied() -> list[str]:
    """What the Dockerfile takes from the checkout."""
    found = []
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M):
        found += line.split()[:-1]
    return found


def test_the_dockerfile_is_sound() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "Dockerfile"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_follows_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, "compose.yaml"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_every_service_is_confined(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit", "cpus"} <= set(service)
    assert service["healthcheck"]["test"][0] == "CMD"
    assert {"max-size", "max-file"} == set(service["logging"]["options"])
    assert service["restart"] == "unless-stopped"
    assert not {"privileged", "network_mode", "pid", "user"} & set(service)


def test_the_box_has_one_volume_and_the_health_check_of_its_image() -> None:
    service = COMPOSE["services"]["shammah"]
    assert service["volumes"] == ["home:/var/lib/shammah"]
    assert "VOLUME /var/lib/shammah\n" in DOCKERFILE
    check = re.search(r"HEALTHCHECK .*\\\n    CMD \[(.+)\]", DOCKERFILE)
    assert check
    assert [f'"{word}"' for word in service["healthcheck"]["test"][1:]] == check[1].split(", ")
    assert service["build"]["target"] in ("${SHAMMAH_TARGET:-full}",)
    assert re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.M)[-2:] == ["serve", "full"]


def test_the_proxy_is_pinned_and_its_address_is_the_one_to_trust() -> None:
    proxy = COMPOSE["services"]["proxy"]
    assert proxy["profiles"] == ["tls"]
    assert re.search(r":-[^:}]+:\d+\.\d+\.\d+", proxy["image"])
    address = proxy["networks"]["inside"]["ipv4_address"]
    for text in ((ROOT / "compose.yaml").read_text(), (ROOT / "docs/operate.md").read_text()):
        assert f'trusted_proxies = "{address}"' in text
    assert "reverse_proxy shammah:8080" in (ROOT / "deploy/Caddyfile").read_text()


def test_nothing_else_gets_into_the_build() -> None:
    allowed = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.M)
    copied = {path.partition("/")[0] if path.startswith("appliance") else path for path in _copied()}
    assert sorted(allowed) == sorted(copied)


def test_the_image_is_of_this_release() -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in DOCKERFILE


def test_the_model_is_built_from_what_is_copied_for_it() -> None:
    """Its layer must not change with any line of the code, so its stage has only what the import loads."""
    script = (
        "import sys, appliance.model.importer, appliance.model.build\n"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] == 'appliance'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    stage = DOCKERFILE.partition(" AS seed\n")[2].partition("\nFROM ")[0]
    copied = re.findall(r"appliance/[\w/]+(?:\.py)?(?= )", stage)
    for module in done.stdout.split():
        path = module.replace(".", "/")
        places = (f"{path}.py", f"{path}/__init__.py")
        assert any(place == taken or place.startswith(f"{taken}/") for place in places for taken in copied), (
            module
        )
