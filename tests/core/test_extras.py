"""What is missing is installed from where the package came from."""

import json
from importlib import metadata

import pytest

from nonet.extras import pip_install


@pytest.fixture
def installed(monkeypatch):
    """Says where pip recorded that this package came from."""

    class Distribution:
        record: str | None = None

        def read_text(self, name):
            assert name == "direct_url.json"
            return self.record

    found = Distribution()
    monkeypatch.setattr(metadata, "distribution", lambda name: found)

    def came_from(url):
        found.record = None if url is None else json.dumps({"url": url, "dir_info": {}})

    return came_from


def test_a_checkout_is_installed_from_its_folder(installed, tmp_path, monkeypatch):
    place = tmp_path / "a checkout"
    place.mkdir()
    (place / "pyproject.toml").touch()
    installed(place.as_uri())
    assert pip_install("report") == f"pip install '{place}[report]'"
    monkeypatch.chdir(place)
    assert pip_install("report") == "pip install '.[report]'"
    assert pip_install("", "--no-deps") == "pip install --no-deps ."


def test_what_came_from_an_index_is_installed_by_name(installed, tmp_path, monkeypatch):
    for url in (None, "https://example.org/nonet.whl", (tmp_path / "gone").as_uri()):
        installed(url)
        assert pip_install("report") == "pip install 'nonet[report]'"

    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", nothing)
    assert pip_install() == "pip install nonet"
