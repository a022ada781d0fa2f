"""What the view does with single changes; all of them together are in tests/properties."""

import json

from changes import History, contents_of, instance_of, view_of

from registryd.feed.revision import NOWHERE, Revision
from registryd.registry.listing import Page, holds, render
from registryd.registry.query import Filters
from registryd.registry.view import EVERYTHING, FORGOTTEN_TERMS, View


def test_a_view_of_nothing_is_nowhere_and_holds_its_own_empty_answer() -> None:
    view = View()
    listing = render(view, Filters(), Page())
    assert (view.revision, len(view)) == (NOWHERE, 0)
    assert holds(listing, view, ())


def test_the_first_change_of_a_store_ends_the_answer_about_an_empty_one() -> None:
    history, view = History(), View()
    listing = render(view, Filters(), Page())
    view.apply(history.register("chat"))
    assert not holds(listing, view, ())


def test_held_instances_read_as_the_store_says_after_the_same_event() -> None:
    history = History()
    history.register("chat", metadata={"note": '"state":"live"},"revision":"x"'})
    history.administer("chat:i1", "maintenance")
    history.preserve("chat:i1")
    [instance] = view_of(history).contents.by_id.values()
    assert json.loads(instance.fragment) == history.documents["chat:i1"]
    assert instance.fragment == instance_of("chat:i1", history.held["chat:i1"]).fragment
    assert instance.suspect


def test_a_guard_that_ends_moves_the_revision_and_nothing_else() -> None:
    history = History()
    history.register("chat")
    view = view_of(history)
    listing = render(view, Filters(service="chat"), Page())
    view.apply(history.preserve())
    assert view.revision.rev == 2
    assert holds(listing, view, [("service:chat",)])


def test_the_clients_part_is_given_back_byte_for_byte() -> None:
    history = History()
    history.register("chat", metadata={"ключ": '\u2028 \\ " 漢', "n": None})
    [instance] = view_of(history).contents.by_id.values()
    assert instance.document == history.held["chat:i1"].doc


def test_an_instance_id_may_hold_colons() -> None:
    history = History()
    history.register("chat", "10.0.0.1:80:x")
    [instance] = view_of(history).of_service("chat")
    assert (instance.service, instance.instance_id) == ("chat", "10.0.0.1:80:x")


def test_a_load_ends_every_answer_given_before_it() -> None:
    history = History()
    history.register("chat")
    view = view_of(history)
    listing = render(view, Filters(), Page())
    view.replace(contents_of(history.held), history.at, history.at)
    assert not holds(listing, view, ())


def test_answers_count_as_changed_until_the_view_has_passed_the_end_of_its_snapshot() -> None:
    # The snapshot began at 1 and ended at 3: the removal at 2 leaves nothing behind to stamp.
    history = History()
    history.register("chat")
    history.remove("chat:i1")
    history.register("draw")
    view, groups = View(), [("service:chat",)]
    view.replace(contents_of(history.held), Revision(history.epoch, 1), history.at)
    for change in history.changes[1:]:
        assert not holds(render(view, Filters(service="chat"), Page()), view, groups)
        view.apply(change)
    assert view.changed_at(groups) == 3
    assert holds(render(view, Filters(service="chat"), Page()), view, groups)


def test_an_answer_of_another_epoch_holds_no_more() -> None:
    history = History()
    history.register("chat")
    view = view_of(history)
    listing = render(view, Filters(), Page())
    listing.generation += 1
    other = History(epoch=history.epoch + 1)
    view.replace(contents_of(history.held), Revision(other.epoch, 0), Revision(other.epoch, 0))
    assert not holds(listing, view, ())


def test_stamps_of_terms_without_instances_are_bounded_and_forgetting_ends_answers_early() -> None:
    history, view = History(), View()
    view.apply(history.register("quiet", metadata={"tags": ["still"]}))
    groups = [("tag:still",)]
    gone = [("tag:gone",)]
    view.apply(history.register("late", metadata={"tags": ["gone"]}))
    view.apply(history.remove("late:i1"))
    assert view.changed_at(groups) == 1
    assert view.changed_at(gone) == 3
    rounds = FORGOTTEN_TERMS // 250 + 2
    for turn in range(rounds):
        models = [f"m{turn}-{n}" for n in range(256)]
        view.apply(history.register("busy", models=models))
        view.apply(history.remove("busy:i1"))
    # One early end is allowed; a stale answer never is.
    assert 3 < view.changed_at(groups) < view.revision.rev
    assert 3 < view.changed_at(gone) < view.revision.rev
    assert view.changed_at([("model:m0-0",)]) >= 5
    assert view.changed_at([(f"model:m{rounds - 1}-0",)]) == view.revision.rev
    assert view.changed_at([(EVERYTHING,)]) == view.changed_at([]) == view.revision.rev


def test_a_term_nobody_ever_had_has_not_changed() -> None:
    history = History()
    history.register("chat")
    assert view_of(history).changed_at([("tag:never",)]) == 0


def test_service_members_come_by_id() -> None:
    history = History()
    for instance_id in ("b", "a", "c"):
        history.register("chat", instance_id)
    assert [i.instance_id for i in view_of(history).of_service("chat")] == ["a", "b", "c"]
