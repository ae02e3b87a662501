"""The page in a browser, over the real recommender and routes with a scripted loop that a test lets go on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.browser.conftest import PATIENCE_MS, Site
from tests.unit.serving.pages import ATTACK, ATTACKS

Visit = Callable[..., Page]
ASKED = "#explore?user=ann&k=5&deadline=20000"


def answered(page: Page) -> Page:
    expect(page.locator("#verdict")).to_be_visible()
    return page


def titles(page: Page, ranking: str) -> list[str]:
    return page.locator(f"{ranking} .title").all_text_contents()


# ---------------------------------------------------------------------------------------------------------- exploring


def test_a_user_is_picked_and_the_turns_unfold_in_order(site: Site, visit: Visit) -> None:
    exploring = site.pages.exploring
    exploring.held = True
    page = visit(site.url)
    page.get_by_label("User id").fill("an")
    page.get_by_role("option", name="ann 4 interactions").click()
    expect(page.locator("#had")).to_contain_text("Newest of 4 interactions")
    page.get_by_role("button", name="Explore", exact=True).click()

    expect(page.locator("#turn-1")).to_have_class("turn open")
    expect(page.get_by_role("heading", name="The TRM’s own list")).to_be_visible()
    expect(page.locator(".found, #turn-2")).to_have_count(0)
    exploring.steps += 1
    expect(page.locator("#turn-2")).to_have_class("turn open")
    expect(page.locator("#turn-1 .thought")).to_have_text(f"Thought: Thought 1: {ATTACK}")
    expect(page.locator("#turn-1 .chip")).to_have_text(["anything "])
    expect(page.locator("#turn-1 .found > li")).to_have_count(5)
    expect(page.locator("#verdict")).to_be_hidden()
    exploring.steps += 1
    expect(page.locator("#turn-3")).to_have_class("turn open")
    expect(page.locator("#turn-2 .found .seen")).to_have_count(2)
    expect(page.locator("#turn-2 .found .fresh")).to_have_count(2)
    exploring.steps += 1
    expect(page.locator("#verdict")).to_contain_text("The policy answered")
    expect(page.locator("#turn-3")).to_contain_text("Ranks what was found")
    assert page.locator(".took").all_text_contents() == ["11 ms", "22 ms", "33 ms"]


def test_the_ranking_stands_beside_the_trm_s_own_with_what_changed(site: Site, visit: Visit) -> None:
    page = answered(visit(f"{site.url}/{ASKED}"))
    rows = page.locator(".column.answer .ranking > li")
    expect(rows).to_have_count(5)
    changes = page.locator(".column.answer .change .unseen").all_text_contents()
    assert changes == [
        "up 3, from the TRM's rank 4",
        "down 1, from the TRM's rank 1",
        "new: not in the TRM's own list",
        "up 1, from the TRM's rank 5",
        "down 3, from the TRM's rank 2",
    ]
    marks = page.locator(".column.answer .change [aria-hidden]").all_text_contents()
    assert marks == ["▲ 3", "▼ 1", "+ new", "▲ 1", "▼ 3"]
    dropped = page.locator(".alone .dropped")
    expect(dropped).to_have_count(1)
    expect(dropped).to_contain_text("dropped")
    expect(rows.nth(2).locator(".origin").first).to_contain_text("2")
    expect(rows.nth(2).locator(".origin").first).to_contain_text("comedy;")
    expect(page.locator("#turn-2 [data-item=i12] .took-rank")).to_contain_text("answered at rank 3")
    expect(page.locator(".lines path")).to_have_count(4)


def test_an_item_says_where_it_was_found(site: Site, visit: Visit) -> None:
    page = answered(visit(f"{site.url}/{ASKED}"))
    first = page.locator(".column.answer .ranking > li").first
    first.locator("summary").click()
    cells = [row.locator("td").all_text_contents() for row in first.locator(".why tbody tr").all()]
    assert [(row[0], row[1], row[2]) for row in cells] == [
        ("turn 1anything", "4 of 5", "50"),
        (f"turn 2comedy; {ATTACK}", "1 of 4", "80"),
        ("TRMthe history alone", "4 of 5", "84"),
    ]
    assert first.locator("mark").count() == 0
    page.locator("[data-item=i1] summary").hover()
    assert page.locator(".lit").count() == page.locator("[data-item=i1]").count() == 5


@pytest.mark.parametrize(
    ("turned", "path", "reason"),
    [
        ({"unavailable": "the policy is being restarted"}, "The TRM answered", "The policy is being restarted."),
        ({"violations": ("answer_length",)}, "The TRM answered", "not valid (answer_length)"),
        ({"pause": 60.0}, "The TRM answered", "The policy did not finish within 300 ms."),
    ],
)
def test_a_path_that_is_not_the_policy_says_why(
    site: Site, visit: Visit, turned: dict[str, Any], path: str, reason: str
) -> None:
    for name, value in turned.items():
        setattr(site.pages.exploring, name, value)
    deadline = 300 if "pause" in turned else 20_000
    page = answered(visit(f"{site.url}/#explore?user=ann&k=5&deadline={deadline}"))
    expect(page.locator("#verdict")).to_contain_text(path)
    expect(page.locator("#verdict")).to_contain_text(reason)
    expect(page.locator(".column")).to_have_count(1)
    expect(page.locator(".turn.open")).to_have_count(0)
    assert titles(page, ".ranking") == [*ATTACKS, page.locator("[data-item=i4] .title").first.text_content()]


def test_a_stranger_gets_popular_items_and_an_empty_list_is_said(site: Site, visit: Visit) -> None:
    page = answered(visit(f"{site.url}/#explore?user=nobody&k=5"))
    expect(page.locator("#verdict")).to_contain_text("Popular items")
    expect(page.locator("#verdict")).to_contain_text("The user is unknown.")
    expect(page.locator("#turns")).to_contain_text("The policy took no turn.")
    expect(page.locator("#had")).to_contain_text("Not known to the feature store")
    page = answered(visit(f'{site.url}/#explore?user=nobody&filter=["year",">=",3000]'))
    expect(page.locator("#lists")).to_contain_text("No item meets the request’s conditions.")


def test_a_run_can_be_stopped_and_another_takes_its_place(site: Site, visit: Visit) -> None:
    site.pages.exploring.held = True
    page = visit(f"{site.url}/{ASKED}")
    expect(page.locator("#turn-1")).to_have_class("turn open")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator("#run")).to_be_focused()
    for _ in range(PATIENCE_MS // 10):
        if site.pages.exploring.cancelled:
            break
        page.wait_for_timeout(10)
    assert site.pages.exploring.cancelled == 1
    page.locator("#run").click()
    expect(page.locator("#turn-1")).to_have_class("turn open")
    site.pages.exploring.held = False
    answered(page)


# ---------------------------------------------------------------------------------------------------------- attacks


def test_markup_in_titles_ids_thoughts_and_preferences_stays_text(site: Site, visit: Visit) -> None:
    page = visit(site.url)
    page.get_by_label("User id").fill(ATTACK)
    page.get_by_label("Preference, in your own words").fill(f"{ATTACKS[0]}; {ATTACK}")
    page.get_by_role("button", name="Add a filter").click()
    page.get_by_role("combobox", name="Value").click()
    page.get_by_role("option", name=ATTACK).click()
    page.get_by_role("button", name="Remove filter 1").click()
    page.get_by_role("button", name="Explore", exact=True).click()
    answered(page)
    shown = titles(page, ".column.answer")
    assert set(shown) >= {ATTACKS[0], ATTACKS[1], ATTACKS[3]}
    expect(page.locator("#turn-2 .chip").nth(1)).to_have_text(ATTACK + " ")
    for row in page.locator(".column.answer summary").all():
        row.click()
    expect(page.locator("#announcer")).to_contain_text(ATTACK)
    page.get_by_label("User id").fill("b onmouseover")
    expect(page.get_by_role("option", name=ATTACK)).to_be_visible()
    page.mouse.move(500, 300)
    assert page.evaluate("window.attacked") is None
    assert page.locator("img, b, main script, [onload], [onerror], [onmouseover]").count() == 0


def test_an_address_cannot_smuggle_markup_or_a_wrong_request(site: Site, visit: Visit) -> None:
    hostile = (
        "#explore?history=<img src=x onerror=window.attacked=1>&history=i7&preference=<b>&k=-1&filter=[1,2]&filter={"
    )
    page = visit(f"{site.url}/{hostile}")
    answered(page)
    expect(page.locator("#history .title").first).to_contain_text("(not in the catalogue)")
    assert page.evaluate("window.attacked") is None
    assert page.locator("main img, main b, .filter").count() == 0
    page.get_by_role("button", name=re.compile("^Remove <img")).click()
    page.get_by_role("button", name="Explore", exact=True).click()
    answered(page)


def test_the_browser_itself_refuses_markup_made_from_strings(site: Site, visit: Visit) -> None:
    page = visit(site.url, allowed="TrustedHTML")
    refused = page.evaluate("(() => { try { document.body.innerHTML = '<i>'; } catch (e) { return e.name; } })()")
    assert refused == "TypeError"


# ----------------------------------------------------------------------------------------------------------- the form


def test_a_history_is_typed_reordered_and_cut(site: Site, visit: Visit) -> None:
    page = visit(site.url)
    page.get_by_label("A history").check()
    search = page.get_by_label("Add an item by title")
    for text, title in (("harbour 1", "Harbour 1"), ("AMELIE", "Amélie"), ("harbour 20", "Harbour 20")):
        search.fill(text)
        page.get_by_role("option", name=title, exact=False).first.click()
        expect(search).to_have_value("")
        expect(search).to_be_focused()
    assert titles(page, "#history") == ["Harbour 1", "Amélie", "Harbour 20"]
    page.get_by_role("button", name="Move Harbour 20 earlier").click()
    assert titles(page, "#history") == ["Harbour 1", "Harbour 20", "Amélie"]
    expect(page.get_by_role("button", name="Move Harbour 20 earlier")).to_be_focused()
    expect(page.locator("#announcer")).to_contain_text("Harbour 20 is now 2 of 3.")
    page.get_by_role("button", name="Remove Harbour 1", exact=True).click()
    assert titles(page, "#history") == ["Harbour 20", "Amélie"]
    expect(page.get_by_role("button", name="Remove Harbour 20")).to_be_focused()
    search.fill("harbour 20")
    expect(page.get_by_role("option", name="Harbour 20")).to_have_count(0)
    page.locator("#run").click()
    answered(page)
    assert site.pages.exploring.asked[-1].history == ("i27", "i6")


def test_a_known_user_s_history_can_be_changed(site: Site, visit: Visit) -> None:
    page = visit(site.url)
    page.get_by_label("User id").fill("ann")
    page.get_by_label("User id").press("Tab")
    page.get_by_role("button", name="Ask with a changed history").click()
    expect(page.locator("#item")).to_be_focused()
    assert titles(page, "#history") == ["Harbour 23", "Harbour 24", "Harbour 25"]


def test_filters_and_preference_reach_the_request(site: Site, visit: Visit) -> None:
    page = visit(site.url)
    page.get_by_label("User id").fill("ann")
    preference = page.get_by_label("Preference, in your own words")
    preference.fill("quiet; com")
    page.get_by_role("option", name="comedy").click()
    expect(preference).to_have_value("quiet; comedy")
    page.get_by_role("button", name="Add a filter").click()
    page.get_by_role("combobox", name="Value").fill("dra")
    page.get_by_role("option", name="Drama").click()
    page.get_by_role("button", name="Add a filter").click()
    second = page.get_by_role("group", name="Filter 2")
    second.get_by_label("Column").select_option("year")
    second.get_by_label("Comparison").select_option("at least")
    page.get_by_role("button", name="Explore", exact=True).click()
    expect(page.locator("#problem")).to_have_text("Give the filter on year a value, or remove it.")
    expect(second.get_by_role("combobox", name="Value")).to_be_focused()
    second.get_by_role("combobox", name="Value").fill("soon")
    page.locator("#run").click()
    expect(page.locator("#problem")).to_contain_text("give a number")
    second.get_by_role("combobox", name="Value").fill("1990")
    page.locator("#run").click()
    answered(page)
    query = site.pages.exploring.asked[-1]
    assert query.preference == ("quiet", "comedy")
    assert [(one.column, one.operator, one.value) for one in query.filters] == [
        ("genres", "=", "Drama"),
        ("year", ">=", 1990),
    ]


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("#user", "", "Name a user, or give a history."),
        ("#k", "0", "Items must be a whole number from 1 to 100."),
        ("#k", "1.5", "Items must be a whole number from 1 to 100."),
        ("#deadline", "99999999", "The deadline must be a whole number from 1 to 30,000."),
    ],
)
def test_a_mistake_is_one_sentence_and_gets_the_focus(
    site: Site, visit: Visit, field: str, value: str, sentence: str
) -> None:
    page = visit(site.url)
    page.fill("#user", "ann")
    page.fill(field, value)
    page.locator("#run").click()
    expect(page.locator("#problem")).to_have_text(sentence)
    expect(page.locator(field)).to_be_focused()
    expect(page.locator(field)).to_have_attribute("aria-invalid", "true")
    assert site.pages.exploring.asked == []


def test_a_view_is_shared_by_its_address(site: Site, visit: Visit) -> None:
    page = visit(site.url)
    page.fill("#user", "ann/other & more")
    page.fill("#preference", "a & b; ü?")
    page.fill("#k", "4")
    page.locator("#run").click()
    answered(page)
    address = page.url
    again = answered(visit(address))
    assert again.input_value("#user") == "ann/other & more"
    assert again.input_value("#preference") == "a & b; ü?"
    assert site.pages.exploring.asked[0] == site.pages.exploring.asked[1]
    again.get_by_role("tab", name="Health").click()
    assert again.url.endswith("#health")
    again.go_back()
    expect(again.locator("#view-explore")).to_be_visible()
    assert again.url == address
    again.fill("#user", "ann")
    again.locator("#run").click()
    expect(again.locator("#verdict")).to_be_visible()
    again.go_back()
    expect(again.locator("#user")).to_have_value("ann/other & more")


def test_a_server_that_is_gone_or_busy_is_said(site: Site, visit: Visit) -> None:
    page = visit(site.url, allowed="Failed to load resource")
    page.fill("#user", "ann")
    busy = '{"error": "this server is answering 256 requests, as many as it takes; try again in 1 s"}'
    page.route("**/v1/explore", lambda route: route.fulfill(status=429, body=busy, content_type="application/json"))
    page.locator("#run").click()
    expect(page.locator("#problem")).to_have_text(
        "This server is answering 256 requests, as many as it takes; try again in 1 s."
    )
    page.unroute("**/v1/explore")
    page.route("**/v1/explore", lambda route: route.abort())
    page.locator("#run").click()
    expect(page.locator("#problem")).to_have_text("The server cannot be reached. Is it still running?")
    page.unroute("**/v1/explore")
    part = 'event: turn\ndata: {"turn": 1}\n\n'
    page.route("**/v1/explore", lambda route: route.fulfill(body=part, content_type="text/event-stream"))
    page.locator("#run").click()
    expect(page.locator("#problem")).to_have_text("The server ended before it answered; try again.")
    expect(page.locator("#stop")).to_be_hidden()


def test_a_lookup_that_fails_is_said(site: Site, visit: Visit) -> None:
    site.pages.knowing.fails = True
    page = visit(site.url, allowed="503")
    page.locator("#user").press_sequentially("ann")
    expect(page.locator("#problem")).to_have_text("The feature store cannot be read; the server's log says why.")


def test_a_loop_that_begins_again_tells_each_turn_once(site: Site, visit: Visit) -> None:
    page = visit(site.url)
    page.fill("#user", "ann")
    call = '{"turn": 1, "thought": "%s", "preference": "anything", "items": []}'
    stream = "".join(
        f'event: turn\r\ndata: {{"turn": 1}}\r\n\r\nevent: call\r\ndata: {call % text}\r\n\r\n'
        for text in ("old", "new")
    )
    told = {"items": [], "path": "trm", "milliseconds": {"total": 1}, "calls": [], "trm": []}
    answer = json.dumps({**told, "reason": {"kind": "late", "sentence": "x"}})
    whole = f": waiting\r\n\r\n{stream}event: answer\r\ndata: {answer}\r\n\r\n"
    page.route("**/v1/explore", lambda route: route.fulfill(body=whole, content_type="text/event-stream"))
    page.locator("#run").click()
    answered(page)
    expect(page.locator(".thought")).to_have_text(["Thought: new"])


def test_the_end_of_a_long_list_is_folded_and_says_what_of_it_was_answered(site: Site, visit: Visit) -> None:
    page = visit(site.url)
    page.fill("#user", "ann")
    items = [{"id": f"i{row}", "title": f"T{row}", "score": 0.5, "new": True} for row in range(13)]
    call = {"turn": 1, "thought": "", "preference": "anything", "items": items}
    answer = {
        "items": [{**items[row], "rank": rank, "turn": 1} for rank, row in enumerate((11, 0), start=1)],
        "path": "policy",
        "milliseconds": {"total": 1, "turns": [1, 1]},
        "trm": items[:2],
    }
    body = f"event: call\ndata: {json.dumps(call)}\n\nevent: answer\ndata: {json.dumps(answer)}\n\n"
    page.route("**/v1/explore", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    page.locator("#run").click()
    summary = page.get_by_text("3 more, 1 of them answered")
    expect(page.locator("#turn-1 .found > li:visible")).to_have_count(10)
    summary.click()
    expect(page.locator("#turn-1 .found > li:visible")).to_have_count(13)


# --------------------------------------------------------------------------------------------- keyboard and listeners


def test_everything_can_be_done_with_the_keyboard(site: Site, visit: Visit) -> None:
    page = visit(site.url)
    press = page.keyboard.press

    def focus() -> str:
        return page.evaluate(
            "document.activeElement.id || document.activeElement.className || document.activeElement.tagName"
        )

    press("Tab")
    assert focus() == "skip"
    press("Enter")
    assert focus() == "main"
    press("Shift+Tab")
    assert focus() == "theme"
    press("Shift+Tab")
    assert focus() == "tab-explore"
    press("ArrowRight")
    assert focus() == "tab-health"
    expect(page.locator("#view-health")).to_be_visible()
    press("Home")
    assert focus() == "tab-explore"
    for _ in range(3):
        press("Tab")
    assert focus() == "user"
    page.keyboard.type("an")
    expect(page.get_by_role("option")).to_have_count(2)
    expect(page.locator("#user")).to_have_attribute("aria-expanded", "true")
    press("ArrowUp")
    expect(page.locator("#user")).to_have_attribute("aria-activedescendant", "user-options-1")
    press("ArrowDown")
    expect(page.locator("#user")).to_have_attribute("aria-activedescendant", "user-options-0")
    press("Enter")
    assert page.input_value("#user") == "ann"
    expect(page.get_by_role("listbox")).to_have_count(0)
    press("ArrowDown")
    expect(page.get_by_role("option").first).to_be_visible()
    press("Escape")
    expect(page.get_by_role("option")).to_have_count(0)
    assert page.input_value("#user") == "ann"
    press("Enter")
    answered(page)
    for _ in range(40):
        press("Tab")
        if focus() == "SUMMARY":
            break
    press("Enter")
    expect(page.locator(".why").first).to_be_visible()
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_turns_and_the_answer_are_announced_politely(site: Site, visit: Visit) -> None:
    page = answered(visit(f"{site.url}/{ASKED}"))
    region = page.locator("#announcer")
    expect(region).to_have_attribute("aria-live", "polite")
    said = region.locator("p").all_text_contents()
    wanted = [
        "Exploring.",
        "Turn 1: asked for anything; 5 items found, 5 new.",
        "Turn 2: asked for",
        "The policy answered",
    ]
    places = [next(place for place, text in enumerate(said) if text.startswith(part)) for part in wanted]
    assert places == sorted(places)


@pytest.mark.parametrize(("scheme", "width"), [("light", 1400), ("dark", 360)])
def test_axe_finds_nothing_to_object_to(site: Site, visit: Visit, scheme: str, width: int) -> None:
    site.pages.refused = "the policy was not made from this TRM"
    options = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}, "reduced_motion": "reduce"}
    page = answered(visit(f'{site.url}/#explore?user=ann&k=5&filter=["year",">=",1900]', **options))
    page.locator("summary").first.click()
    page.fill("#user", "an")
    expect(page.locator("#user-options > li").first).to_be_visible()
    page.keyboard.press("ArrowDown")
    check(page)
    page.get_by_label("A history").check()
    page.fill("#item", "harbour")
    page.locator("#item-options > li").first.click()
    page.fill("#k", "")
    page.locator("#run").click()
    check(page)
    page.get_by_role("tab", name="Health").click()
    expect(page.locator(".card")).to_have_count(3)
    page.locator(".figure summary").first.click()
    check(page)


def check(page: Page) -> None:
    found = Axe().run(page, options={"resultTypes": ["violations"]})
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.parametrize("view", ["explore?user=ann&k=10", "health"])
def test_a_phone_shows_it_without_scrolling_sideways(site: Site, visit: Visit, view: str) -> None:
    page = visit(f"{site.url}/#{view}", viewport={"width": 360, "height": 740})
    expect(page.locator("#verdict" if "user" in view else ".card").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = page.evaluate(
        "[...document.querySelectorAll('main *')].filter(node => !node.closest('.scroll, .unseen, svg') && "
        "node.getBoundingClientRect().right > 361).map(node => node.className || node.tagName)"
    )
    assert wide == []


def test_the_theme_follows_the_system_until_it_is_chosen(site: Site, visit: Visit) -> None:
    page = visit(site.url, color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(ground)
    assert dark != light
    page.get_by_role("button", name="Theme: auto").click()
    page.get_by_role("button", name="Theme: light").click()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(ground) == dark
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(ground) == dark


def test_nothing_moves_for_those_who_want_less_motion(site: Site, visit: Visit) -> None:
    site.pages.exploring.held = True
    moving = "getComputedStyle(document.querySelector('.turn.open .token')).animationName"
    for motion, name in (("no-preference", "breathe"), ("reduce", "none")):
        page = visit(f"{site.url}/{ASKED}", reduced_motion=motion)
        expect(page.locator("#turn-1")).to_have_class("turn open")
        assert page.evaluate(moving) == name


# ------------------------------------------------------------------------------------------------------------- health


def test_the_health_view_shows_bundle_figures_and_traffic(site: Site, visit: Visit) -> None:
    page = answered(visit(f"{site.url}/{ASKED}"))
    page.get_by_role("tab", name="Health").click()
    expect(page.locator(".state")).to_contain_text("Ready")
    expect(page.locator(".facts")).to_contain_text("f00dfeed0001")
    expect(page.locator(".why-served")).to_contain_text("This bundle serves the policy")
    quality = page.get_by_role("region", name="How good it is")
    row = quality.get_by_role("row", name="Policy after stage 2")
    assert row.get_by_role("cell").all_text_contents() == ["0.0712", "0.1340", "0.998", "2.10"]
    assert quality.get_by_role("row", name="TRM alone").get_by_role("cell").all_text_contents()[1] == "–"
    expect(page.locator("#health")).to_contain_text("+0.0028, 95 % interval +0.0004 to +0.0050")
    assert page.locator(".big dd").first.text_content() == "1"
    charts = page.get_by_role("img", name=re.compile("1 request in the last hour"))
    expect(charts).to_have_count(1)
    page.get_by_text("The same as a table").first.click()
    table = page.get_by_role("region", name="Requests by minute, table")
    assert table.get_by_role("row").nth(1).get_by_role("cell").all_text_contents() == ["1", "1", "0", "0"]


def test_the_health_view_keeps_up_and_keeps_what_is_open(site: Site, visit: Visit) -> None:
    page = visit(f"{site.url}/#health", allowed="Failed to load resource")
    expect(page.locator(".big dd").first).to_have_text("0")
    summary = page.get_by_text("The same as a table").first
    summary.click()
    site.pages.refused = "the policy was not made from this TRM"
    site.pages.exploring.available = False
    expect(page.locator("#health .alert")).to_contain_text("A newer bundle is refused: the policy was not made")
    expect(page.locator(".facts")).to_contain_text("cannot be asked now")
    assert page.locator("#health details").first.evaluate("node => node.open")
    assert page.evaluate("document.activeElement.textContent") == "The same as a table"
    page.route("**/v1/overview", lambda route: route.abort())
    expect(page.locator("#health-problem")).to_contain_text("cannot be reached")
