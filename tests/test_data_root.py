"""Where data sets live and where they are downloaded from."""

import pytest

from tombola.errors import InputError
from tombola.tasks.data.root import data_root
from tombola.tasks.data.sources import mirrors


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No settings of the user."""
    for name in ("TOMBOLA_DATA", "TOMBOLA_CONFIG", "TOMBOLA_MIRRORS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("platformdirs.user_config_path", lambda name: tmp_path / "etc" / name)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)


def config(monkeypatch, tmp_path, text):
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8")
    monkeypatch.setenv("TOMBOLA_CONFIG", str(path))
    return path


def test_the_data_root_is_the_first_of_flag_environment_config_and_cache(monkeypatch, tmp_path):
    assert data_root() == tmp_path / "cache" / "tombola" / "data"
    config(monkeypatch, tmp_path, f'data_root = "{(tmp_path / "configured").as_posix()}"')
    assert data_root() == tmp_path / "configured"
    monkeypatch.setenv("TOMBOLA_DATA", "")
    assert data_root() == tmp_path / "configured"
    monkeypatch.setenv("TOMBOLA_DATA", str(tmp_path / "environment"))
    assert data_root() == tmp_path / "environment"
    assert data_root(tmp_path / "flag") == data_root(str(tmp_path / "flag")) == tmp_path / "flag"


def test_a_relative_data_root_in_the_config_is_relative_to_it(monkeypatch, tmp_path):
    config(monkeypatch, tmp_path, 'data_root = "sets"')
    assert data_root() == tmp_path / "sets"


def test_the_config_file_in_its_usual_place_is_read(tmp_path):
    (tmp_path / "etc" / "tombola").mkdir(parents=True)
    (tmp_path / "etc" / "tombola" / "config.toml").write_text('data_root = "here"', encoding="utf-8")
    assert data_root() == tmp_path / "etc" / "tombola" / "here"


@pytest.mark.parametrize(
    ("text", "rule"),
    [("data_root = ", "must be TOML"), ("data_root = 3", "as a string, but got 3"), ('data_root = ""', "string")],
)
def test_a_bad_config_is_an_input_error_that_names_the_file(monkeypatch, tmp_path, text, rule):
    config(monkeypatch, tmp_path, text)
    with pytest.raises(InputError, match=rule) as caught:
        data_root()
    assert "settings.toml" in str(caught.value)


def test_a_config_that_is_not_utf8_is_an_input_error(monkeypatch, tmp_path):
    config(monkeypatch, tmp_path, "").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="UTF-8"):
        data_root()


def test_a_named_config_must_exist(monkeypatch, tmp_path):
    monkeypatch.setenv("TOMBOLA_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(InputError, match=r"none\.toml, which doesn't exist"):
        data_root()


def test_a_data_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="must be a folder"):
        data_root(tmp_path / "file")


def test_own_mirrors_come_first_with_the_folders_of_a_data_root(monkeypatch, tmp_path):
    public = mirrors("mnist")
    config(monkeypatch, tmp_path, 'mirrors = ["https://a.example/data/"]')
    assert mirrors("mnist") == ["https://a.example/data/MNIST/raw", *public]
    assert mirrors("cifar10")[0] == "https://a.example/data"
    monkeypatch.setenv("TOMBOLA_MIRRORS", "http://b.example, https://c.example:81/x")
    assert mirrors("fashion-mnist")[:2] == [
        "http://b.example/FashionMNIST/raw",
        "https://c.example:81/x/FashionMNIST/raw",
    ]


@pytest.mark.parametrize("url", ["file:///etc", "ftp://a.example/x", "a.example", "https://", "http://[::1"])
def test_mirrors_are_http_addresses(monkeypatch, url):
    monkeypatch.setenv("TOMBOLA_MIRRORS", url)
    with pytest.raises(InputError, match="TOMBOLA_MIRRORS"):
        mirrors("mnist")


@pytest.mark.parametrize("text", ['mirrors = "https://a.example"', "mirrors = [1]", 'mirrors = ["ftp://a.example"]'])
def test_mirrors_in_the_config_are_a_list_of_addresses(monkeypatch, tmp_path, text):
    config(monkeypatch, tmp_path, text)
    with pytest.raises(InputError, match=r"settings\.toml must be"):
        mirrors("mnist")


def test_an_unknown_data_set_is_named_with_the_nearest():
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        mirrors("cifar")
