import pytest

from al_lightning.labelling.page.guard import Guard

OWN = {"host": "127.0.0.1:8000"}
SENT = {**OWN, "origin": "http://127.0.0.1:8000", "content-type": "application/json"}
TOKEN = Guard("secret", frozenset({"lab", "0.0.0.0"}))  # noqa: S104 - a name, not bound


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:9000", "LOCALHOST", "[::1]:8000", "127.1.2.3"])
def test_this_machine_by_any_of_its_names_is_let_in(host):
    assert Guard().refusal("GET", "/state", {"host": host}) is None


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "10.0.0.1", "[", "lab", "a@b"]
)
def test_other_names_are_refused_for_they_may_be_rebound(host):
    assert "is not this server" in Guard().refusal("GET", "/state", {"host": host})


@pytest.mark.parametrize("path", ["", "*", "/", "//", "/\udcff", "/secre", "/secret2/", "/sécret/"])
def test_a_path_without_the_token_is_refused_whatever_it_is(path):
    assert "lacks the token" in TOKEN.refusal("OPTIONS", path, OWN)


def test_a_host_that_is_missing_is_refused():
    assert "is not this server" in Guard().refusal("GET", "/", {})


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:3000", "http://127.0.0.1:8000.evil.example", ""]
)
def test_pages_of_other_origins_are_refused(origin):
    assert "not this server's own" in Guard().refusal("POST", "/answer", {**SENT, "origin": origin})
    assert "not this server's own" in Guard().refusal("GET", "/state", {**OWN, "origin": origin})


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "text/json"])
def test_what_a_form_could_send_is_refused(content_type):
    assert "application/json" in Guard().refusal("POST", "/answer", {**SENT, "content-type": content_type})


def test_the_page_itself_is_let_in():
    assert Guard().refusal("POST", "/answer", {**SENT, "content-type": "application/json; charset=utf-8"}) is None
    assert Guard().refusal("POST", "/answer", {**SENT, "sec-fetch-site": "same-origin"}) is None


def test_another_site_may_link_to_the_page_and_embed_nothing():
    link = {**OWN, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert Guard().refusal("GET", "/", link) is None
    assert "another site" in Guard().refusal("GET", "/state", link)
    assert "another site" in Guard().refusal("GET", "/", {**link, "sec-fetch-dest": "iframe"})
    image = {**OWN, "sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}
    assert "another site" in Guard().refusal("GET", "/shown/3", image)


@pytest.mark.parametrize("path", ["/", "", "/secre/", "/state", "/secret2/state", "//secret/", "/\u00e9/"])
def test_without_the_token_nothing_is_let_in(path):
    assert "lacks the token" in TOKEN.refusal("GET", path or "/", {"host": "lab:8000"})


@pytest.mark.parametrize("host", ["lab:8000", "192.168.0.7:8000", "[fe80::1]:8000", "localhost:8000"])
def test_with_the_token_its_names_and_all_numbers_are_let_in(host):
    assert TOKEN.refusal("GET", "/secret/state", {"host": host}) is None
    assert "is not this server" in TOKEN.refusal("GET", "/secret/state", {"host": "evil.example"})
