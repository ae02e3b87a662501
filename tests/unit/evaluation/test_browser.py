"""The trajectory browser: its data and labels, that no title becomes markup, and (in Chromium) its script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from deeprec.evaluation.browser import browser, payload, trajectory_page
from deeprec.evaluation.reading import ReadTrajectory, read
from deeprec.types import Call, Catalogue, EndReason, Example, Item, RetrievedItem, RewardPart, Trajectory

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
CATALOGUE = Catalogue((Item("a", "Alpha"), Item("b", "Beta & <i>co</i>"), Item("c", HOSTILE), Item("d", "Delta")))
VOID = {"meta", "input", "br", "img", "link"}


def rollout(user: str, answer: tuple[str, ...], value: float, calls: int = 2, broken: bool = False) -> ReadTrajectory:
    lists = (("a", "b"), ("b", "c"), ("d",))[:calls]
    made = tuple(
        Call(f"wish {number}", (f"wish {number}",), tuple(RetrievedItem(one, 0.5) for one in items))
        for number, items in enumerate(lists, 1)
    )
    text = "".join(
        f"Idea {call.preference}.<|begin_of_preference|>{call.preference}<|end_of_preference|>\n"
        f"<|begin_of_item_list|>\n<|end_of_item_list|>\n"
        for call in made
    )
    end = EndReason.CALL_LIMIT if broken else EndReason.ANSWERED
    parts = (RewardPart("format", -1.0 if broken else 0.0, 1.0), RewardPart("listwise", None if broken else value, 0.5))
    one = Trajectory(f"{user}@1", user, (), (), (), (), f"{text}Rank {user}.", made, answer, end, parts)
    return read(one, Example(user, ("d",), "c"), ("one_answer",) if broken else (), ("b", "a"), CATALOGUE)


ROLLOUTS = [
    rollout("ann", ("c", "a"), 3.0),
    rollout("bob", ("a", "b"), 0.0),
    rollout("cleo", (), 0.0, calls=3, broken=True),
    rollout("dan", ("a",), 1.0, calls=1),
]


class Page(HTMLParser):
    """Elements in order with their attributes, the texts of scripts by id, and whether tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.open: list[str] = []
        self._id = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        self._id = dict(attrs).get("id") or ""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[self._id] = self.scripts.get(self._id, "") + data


@pytest.fixture(scope="module")
def html() -> str:
    return trajectory_page(f"A {HOSTILE}", ["A note."], (("", "ndcg"), [("policy", "0.5")]), ROLLOUTS, 9)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_payload_names_titles_once_and_keeps_every_part() -> None:
    data = payload(ROLLOUTS)
    assert sorted(data["titles"]) == sorted(item.title for item in CATALOGUE.items)
    titles = data["titles"]
    first = data["trajectories"][0]
    assert [[titles[item[0]], *item[1:]] for item in first["calls"][1]["items"]] == [
        ["Beta & <i>co</i>", 50, 1, 0, 0],
        [HOSTILE, 50, 2, 1, 1],
    ]
    assert [call["thought"] for call in first["calls"]] == ["Idea wish 1.", "Idea wish 2."]
    assert [[titles[line[0]], *line[1:]] for line in first["answer"]] == [[HOSTILE, 2, 2, 0, 1], ["Alpha", 1, 1, 2, 0]]
    assert first["rewards"] == [["format", 0.0, 1.0], ["listwise", 3.0, 0.5]]
    assert (first["reward"], first["found"], first["answered"]) == (1.5, 2, 1)
    invalid = data["trajectories"][2]
    assert (invalid["end"], invalid["violations"], invalid["reward"]) == ("call_limit", ["one_answer"], -1.0)
    assert invalid["rewards"][1] == ["listwise", None, 0.5]


def test_the_page_says_how_its_trajectories_were_chosen() -> None:
    assert browser(ROLLOUTS).note == "All 4 rollouts."
    assert browser([], 0, "Nobody.").note == "Nobody. There is no rollout."
    picked = browser(ROLLOUTS * 5, 600, "After stage 2.").note
    assert picked.startswith("After stage 2. 20 of 600 rollouts: the 2 of highest and the 2 of lowest reward; of the")
    assert browser(ROLLOUTS).ends == (("answered", 3), ("call_limit", 1))


def test_hostile_text_stays_inside_the_data(html: str, page: Page) -> None:
    assert not set("<>&") & set(page.scripts["trajectories-data"])
    assert json.loads(page.scripts["trajectories-data"]) == payload(ROLLOUTS)
    assert sum(tag == "script" for tag, _ in page.tags) == 2
    assert not any(tag == "img" for tag, _ in page.tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert not any({"src", "href"} & set(attributes) for _, attributes in page.tags)
    script = page.scripts[""]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|fetch\(|XMLHttp", script)


def test_every_control_has_a_label_and_every_reference_exists(page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    labelled = {attributes["for"] for tag, attributes in page.tags if tag == "label"}
    controls = {attributes["id"] for tag, attributes in page.tags if tag in {"input", "select"}}
    assert controls == labelled
    assert len(controls) == 10
    script_made = {"trajectory-title"}
    for _, attributes in page.tags:
        for name in ("aria-labelledby", "aria-controls", "for"):
            if name in attributes:
                assert set(str(attributes[name]).split()) <= {*ids, *script_made}
    assert any(attributes.get("aria-live") == "polite" for _, attributes in page.tags)
    buttons = [attributes for tag, attributes in page.tags if tag == "button"]
    assert [button["type"] for button in buttons] == ["reset", "button", "button"]
    assert not any("tabindex" in attributes and attributes["tabindex"] != "0" for _, attributes in page.tags)


def test_light_and_dark_and_no_script(html: str) -> None:
    assert "prefers-color-scheme: dark" in html
    assert "<noscript>" in html
    assert "call limit (1)" in html
    colours = re.findall(r"#[0-9a-f]{3,6}\b", html.partition("</style>")[2])
    assert colours == []


# --------------------------------------------------------------------------------------------------------- Chromium

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVE = """
<script>
var report = [], at = function (id) { return document.getElementById(id); };
function note(name) {
  var picked = Array.prototype.map.call(at("pick").options, function (one) { return one.textContent; });
  report.push({ name: name, status: at("matches").textContent, options: picked,
                heading: at("trajectory-title").textContent, text: at("trajectory").textContent,
                scripts: document.scripts.length, images: document.images.length });
}
function set(id, value) { at(id).value = value; at(id).dispatchEvent(new Event("input", { bubbles: true })); }
function reset() {
  ["text", "end", "target", "format", "reward-low", "reward-high", "calls-low", "calls-high", "order"].forEach(
    function (name) { at("filter-" + name).value = ""; });
  set("filter-text", "");
}
note("start");
at("next").click(); note("next");
at("previous").click(); at("previous").click(); note("wrapped");
reset(); set("filter-end", "call_limit"); note("end");
reset(); set("filter-target", "answered"); note("answered");
reset(); set("filter-target", "found"); note("found");
reset(); set("filter-target", "never"); note("never");
reset(); set("filter-format", "broken"); note("broken");
reset(); set("filter-reward-low", "0.5"); set("filter-reward-high", "1"); note("reward");
reset(); set("filter-calls-low", "3"); note("calls");
reset(); set("filter-calls-high", "1"); note("few calls");
reset(); set("filter-text", "WISH 3"); note("text");
reset(); set("filter-text", "<\\/SCRIPT>"); note("hostile");
reset(); set("filter-text", "nowhere"); note("none"); at("next").click();
reset(); set("filter-order", "low"); note("low");
reset(); at("pick").selectedIndex = 3; at("pick").dispatchEvent(new Event("change")); note("picked");
var out = document.createElement("pre");
out.id = "driven"; out.textContent = JSON.stringify(report);
document.body.appendChild(out);
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: the browser's script is not run")
def test_filtering_and_stepping_in_chromium(html: str, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(html.replace("</body>", DRIVE + "</body>"), encoding="utf-8")
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom",
        f"--user-data-dir={tmp_path / 'profile'}", file.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    found = re.findall(r'<pre id="driven">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stderr[-2000:]
    import html as entities

    steps = {step["name"]: step for step in json.loads(entities.unescape(found[0]))}

    def users(name: str) -> list[str]:
        return re.findall(r"User (\w+):", " ".join(steps[name]["options"]))

    assert steps["start"]["status"] == "4 of 4 trajectories fit; showing 1: User ann: hit, 2 calls, reward 1.5"
    assert steps["next"]["heading"] == "User bob"
    assert steps["wrapped"]["heading"] == "User dan"
    assert {name: users(name) for name in ("end", "broken", "answered", "found", "never")} == {
        "end": ["cleo"],
        "broken": ["cleo"],
        "answered": ["ann"],
        "found": ["bob", "cleo"],
        "never": ["dan"],
    }
    assert users("reward") == ["dan"]
    assert users("calls") == ["cleo"]
    assert users("few calls") == ["dan"]
    assert users("text") == ["cleo"]
    assert users("hostile") == ["ann", "bob", "cleo", "dan"]
    assert users("low") == ["cleo", "bob", "dan", "ann"]
    assert steps["none"]["status"] == "0 of 4 trajectories fit"
    assert steps["none"]["heading"] == "No trajectory fits"
    assert steps["picked"]["heading"] == "User dan"
    text = steps["start"]["text"]
    assert HOSTILE in text
    for piece in ("Call 2: “wish 2”", "Idea wish 2.", "2 items, 1 new", "50, also call 1", "call 2 “wish 2”, rank 2"):
        assert piece in text
    assert "listwise30.51.5" in text
    assert "not scored" in steps["end"]["text"]
    assert {(step["scripts"], step["images"]) for step in steps.values()} == {(3, 0)}
