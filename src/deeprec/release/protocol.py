"""The protocol of a release: canary, smoke test, ramp, promotion, soak, or back; each step as the cluster finds it.

A release is a bundle's version becoming what serves, of one InferenceService or of two (the recommender's and, where
asked for, the TRM's own). Its steps say what is to be and look at what is: one that was made is not made again, so that
a release which was killed at any moment goes on by running it again, or ends by ``settle``, on the version before or on
the new one. Every change is one request to the API server, and traffic only ever goes to what was ready before it.

What a release knows besides the cluster's state is its record on the shelf (``release.record``).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.opening import cache_directory
from deeprec.bundle.shelf import Shelf
from deeprec.config import Config
from deeprec.errors import DeepRecError, ReleaseError
from deeprec.objects import MovedError
from deeprec.release import service as spec
from deeprec.release.cluster import Cluster, ConflictError
from deeprec.release.figures import Verdict
from deeprec.release.preflight import preflight
from deeprec.release.record import Record, Records, Step, new_record, now
from deeprec.release.sides import Sides
from deeprec.release.smoke import Door, smoke, smoke_policy
from deeprec.types import JsonDict

Kind = Literal["recommender", "trm"]
Say = Callable[[str], None]
_LOOK_SECONDS = 15.0
_ATTEMPTS = 20


@dataclass(frozen=True)
class Unit:
    """One InferenceService of a release, which is also the name of its model."""

    name: str
    kind: Kind


class Waits(DeepRecError):
    """A release stands before its promotion, which a person is to make."""

    exit_code = 0


@dataclass
class Release:
    """One release of one version.

    Args:
        config: the sections ``release``, ``bundle`` (the shelf) and ``serving``.
        say: told what is done and what is waited for, a line each.
        take_over: take fields that another manager owns, as of an InferenceService that Helm has made.
    """

    config: Config
    cluster: Cluster
    shelf: Shelf
    record: Record
    say: Say
    take_over: bool = False
    sleep: Callable[[float], None] = time.sleep
    _bundle: Bundle | None = field(default=None, init=False)

    @property
    def records(self) -> Records:
        return Records(self.shelf)

    @property
    def version(self) -> str:
        """What is released."""
        return self.record.version

    @property
    def units(self) -> list[Unit]:
        """The InferenceServices, the recommender's last, whose turn it is that users see."""
        settings = self.config.release
        trm = [Unit(f"{settings.name}-trm", "trm")] if settings.trm else []
        return [*trm, Unit(settings.name, "recommender")]

    @property
    def bundle(self) -> Bundle:
        """The version's index."""
        if self._bundle is None:
            cache = cache_directory(self.config.serving.cache)
            self._bundle = self.shelf.open(self.version, lambda serve: (), cache)
        return self._bundle

    @property
    def apart(self) -> bool:
        """Whether this version's policy has a server of its own."""
        return self.config.release.policy and self.bundle.serve == "policy"

    # --------------------------------------------------------------------------------------------------------- steps

    def canary(self) -> None:
        """Let the version be there beside what serves, with the smallest share of the requests, and wait until it is
        ready; the first release of all makes the InferenceService.

        Raises:
            ReleaseError: it does not become ready, with what KServe says of it.
        """
        self._make_policy()
        for unit in self.units:
            state = self._state(unit)
            if state is None:
                self.say(f"{unit.name}: the first release, {self.version} serves as soon as it is ready")
                self.record = self.records.change(self.record.id, partial(_making, name=unit.name))
                self._apply(spec.as_service(self.cluster.namespace, unit.name, self._predictor(unit)))
            elif state.of(self.version) is None:
                self._remember(unit, state)
                mine = self._predictor(unit)
                stable = self._kept(state)
                if self._replaces:
                    self.say(f"{unit.name}: {self.version} in the place of {state.stable.version or 'what serves'}")
                    self._apply(self._service(unit, spec.as_stable(mine, stable)))
                else:
                    weight = self.config.release.ramp.steps[0]
                    self.say(f"{unit.name}: {self.version} beside {state.stable.version or 'what serves'}, {weight} %")
                    self._apply(self._service(unit, stable, [spec.as_canary(mine, stable, weight)]))
        for unit in self.units:
            self._await(unit)
        self._note("canary", "pass", f"{self.version} is ready")

    def smoke(self) -> None:
        """Ask the new version on its own Service.

        Raises:
            ReleaseError: it does not answer as it should.
        """
        if self.record.promoted:
            return
        failures: list[str] = []
        figures: JsonDict = {}
        with ExitStack() as doors:
            if self.apart:
                service = spec.service_name(spec.policy_service(self.config.release, self.version), "")
                asked = smoke_policy(doors.enter_context(Door(self.cluster, service)))
                failures += asked.failures
                figures |= {"policy": asked.figures}
            for unit in self.units:
                state, mine = self._mine(unit)
                door = doors.enter_context(Door(self.cluster, mine.service(unit.name)))
                beside = None
                if mine is not state.stable and state.stable.ready:
                    beside = doors.enter_context(Door(self.cluster, state.stable.service(unit.name)))
                self.say(f"{unit.name}: asking {mine.service(unit.name)}")
                asked = smoke(door, unit.name, self.bundle, self.config.release.smoke, stable=beside, kind=unit.kind)
                failures += asked.failures
                figures |= {unit.name: asked.figures}
        if failures:
            more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
            self._note("smoke", "fail", failures[0], {**figures, "failures": failures})
            raise ReleaseError(f"the smoke test failed: {failures[0]}{more}")
        self._note("smoke", "pass", "answers as its bundle says", figures)

    def ramp(self) -> None:
        """Raise the canary's share step by step, each time its figures are as good as the stable one's.

        Raises:
            ReleaseError: they are not, or too little was asked and ``inconclusive`` is ``fail``.
        """
        for weight in self.config.release.ramp.steps:
            there = {unit: self._mine(unit) for unit in self.units}
            if all(state.stable is mine for state, mine in there.values()):
                return
            if all(state.stable is mine or mine.weight > weight for state, mine in there.values()):
                continue  # it was there before it was run again
            for unit, (state, mine) in there.items():
                if mine is not state.stable and mine.weight < weight:
                    stable = self._kept(state)
                    self.say(f"{unit.name}: {weight} % for {self.version}")
                    self._apply(self._service(unit, stable, [spec.as_canary(mine.raw, stable, weight)]))
                    self._await(unit)
            self._measure(weight)

    def promote(self) -> None:
        """Let the version serve everybody: one request, after which the one before stays warm; then ``live`` moves.

        Raises:
            ReleaseError: the version is not ready.
        """
        for unit in self.units:
            state, mine = self._mine(unit)
            if mine is state.stable:
                continue
            if not mine.ready:
                raise ReleaseError(f"{self.version} is not ready any more{_because(mine.failure)}")
            before = state.stable
            soaking = []
            if before.name:  # an unnamed one's pods would be others under another name
                soaking = [spec.as_canary(before.raw, mine.raw, 0)]
            self.say(f"{unit.name}: everybody to {self.version}")
            self._apply(self._service(unit, spec.as_stable(mine.raw, before.raw), soaking))
        self._await_current()
        self._move_live(self.version)
        self.record = self.records.change(self.record.id, lambda record: replace(record, promoted=True, waiting=False))
        self._note("promote", "pass", f"{self.version} serves everybody")

    def soak(self) -> None:
        """Watch the version for a while with the one before still warm, then let that go.

        Raises:
            ReleaseError: it is not ready any more.
        """
        end = time.monotonic() + self.config.release.soak_seconds
        warm = any(self._need(unit).canaries for unit in self.units)
        if warm:
            self.say(f"watching for {self.config.release.soak_seconds:g} s, the version before stays warm")
        while warm and time.monotonic() < end:
            for unit in self.units:
                stable = self._need(unit).stable
                if stable.version != self.version or stable.failure or not stable.ready:
                    raise ReleaseError(f"{self.version} is not ready any more{_because(stable.failure)}")
            self.sleep(min(_LOOK_SECONDS, max(0.0, end - time.monotonic())))
        for unit in self.units:
            state = self._need(unit)
            if state.canaries:
                self.say(f"{unit.name}: {', '.join(one.version or one.name for one in state.canaries)} ends")
                self._apply(self._service(unit, self._kept(state)))
        self._drop_policies()
        self._note("soak", "pass", f"{self.version} alone serves")

    # ------------------------------------------------------------------------------------------------ whole and back

    def deploy(self) -> None:
        """All steps in turn; where one fails, back to what served before.

        Raises:
            Waits: ``release.approval`` is ``manual``, and all is ready for ``promote``.
            ReleaseError: it was rolled back, with the reason.
        """
        with self.or_back():
            preflight(self.config.release, self.cluster, self.say)
            self.canary()
            self.smoke()
            self.ramp()
            self.ask_approval()
            self.promote()
            self.soak()
        self.finish()

    def ask_approval(self) -> None:
        """
        Raises:
            Waits: a person is to promote, and has not.
        """
        if self.config.release.approval == "manual" and not self.record.promoted:
            self.record = self.records.change(self.record.id, lambda record: replace(record, waiting=True))
            raise Waits(f"{self.version} is ready and waits: `deeprec release promote` or `deeprec release rollback`")

    @contextmanager
    def or_back(self) -> Iterator[None]:
        """A context in which whatever is raised, but ``Waits``, is followed by a rollback.

        Raises:
            ReleaseError: what was raised, and what serves now.
        """
        try:
            yield
        except Waits:
            raise
        except BaseException as error:
            reason = str(error) or type(error).__name__
            self.say(f"going back: {reason}")
            self.rollback(reason)
            if not isinstance(error, DeepRecError):
                raise
            serves = f"{self.record.before} serves as before" if self.record.before else "what served before serves"
            serves = "nothing serves, as before" if self.record.made else serves
            raise ReleaseError(f"{self.version} was not released: {reason.rstrip('.')}; {serves}") from error

    def conclude(self) -> None:
        """Promote, soak, and close the record; back to what served before where that fails.

        Raises:
            ReleaseError: it was rolled back, with the reason.
        """
        with self.or_back():
            self.promote()
            self.soak()
        self.finish()

    def finish(self) -> None:
        """Close the record."""
        self.record = self.records.end(self.record.id, "released", f"{self.version} serves")

    def rollback(self, reason: str) -> None:
        """Let what served before serve everybody again; one request for each InferenceService.

        What this release has made where nothing was is deleted; what served already when it began stays.
        """
        for unit in reversed(self.units):
            state = self._state(unit)
            if state is None:
                continue
            kept, mine = self.record.restore.get(unit.name), state.of(self.version)
            if unit.name in self.record.made:
                self.say(f"{unit.name}: deleted, nothing served before")
                self.cluster.delete(unit.name)
            elif mine is state.stable and kept is not None:
                self.say(f"{unit.name}: back to {self.record.before or 'what served before'}")
                self._restore_policies()
                self._apply(self._service(unit, kept), force=True)
                self._await_stable(unit)
            elif mine is not None and mine is not state.stable:
                self.say(f"{unit.name}: {state.stable.version or 'what served before'} alone")
                self._restore_policies()
                self._apply(self._service(unit, state.stable.raw), force=True)
        if self.record.before is not None and self.shelf.pointer("live") == self.version:
            self._move_live(self.record.before)
        self._drop_policies()
        self.record = self.records.end(self.record.id, "rolled back", reason)

    def settle(self, reason: str) -> None:
        """End a release that has died: what was promoted is finished, anything else goes back.

        Whether it was promoted is what the cluster says of the InferenceService that users see.

        Raises:
            ReleaseError: it had been promoted, is no longer ready, and was rolled back.
        """
        if self.record.ending:
            return
        if not self._replaces and self._is_promoted(self.units[-1]) and self.record.before is not None:
            self.say(f"{self.version} had been promoted: finishing")
            self.conclude()
        elif self.record.promoted:
            self.conclude()
        else:
            self.rollback(reason)

    # ------------------------------------------------------------------------------------------------------- details

    @property
    def _replaces(self) -> bool:
        """Whether the recommender itself makes room for the new one, rather than its policy's server."""
        return self.config.release.strategy == "replace" and not self.config.release.policy

    def _state(self, unit: Unit) -> spec.State | None:
        found = self.cluster.get(unit.name)
        return None if found is None else spec.read_state(found)

    def _need(self, unit: Unit) -> spec.State:
        state = self._state(unit)
        if state is None:
            raise ReleaseError(f"somebody has deleted the InferenceService {unit.name}; release again")
        return state

    def _is_promoted(self, unit: Unit) -> bool:
        state = self._state(unit)
        return state is not None and state.stable.version == self.version

    def _mine(self, unit: Unit) -> tuple[spec.State, spec.Predictor]:
        """An InferenceService's state, and the version's predictor in it.

        Raises:
            ReleaseError: it is not there.
        """
        state = self._need(unit)
        mine = state.of(self.version)
        if mine is None:
            raise ReleaseError(self._vanished(unit))
        return state, mine

    def _predictor(self, unit: Unit) -> JsonDict:
        settings, place = self.config.release, self.shelf.address
        if unit.kind == "trm":
            return spec.of_trm(settings, place, self.version)
        return spec.of_recommender(settings, self.cluster.namespace, place, self.version, self.apart)

    def _kept(self, state: spec.State) -> JsonDict:
        """The stable predictor as it is, replicas named, so that applying it changes nothing."""
        return {"minReplicas": 1, **state.stable.raw}

    def _service(self, unit: Unit, stable: JsonDict, canaries: Sequence[tuple[int, JsonDict]] = ()) -> JsonDict:
        return spec.as_service(self.cluster.namespace, unit.name, stable, canaries)

    def _apply(self, service: JsonDict, *, force: bool = False) -> None:
        try:
            self.cluster.apply(service, force=force or self.take_over)
        except ConflictError as error:
            raise ReleaseError(
                f"{error}; somebody else has set these fields: ask them, or take them over with "
                f"`deeprec release deploy VERSION --take-over`"
            ) from error

    def _remember(self, unit: Unit, state: spec.State) -> None:
        """Write down what served, before anything of it is changed."""
        kept = self._kept(state)
        self.record = self.records.change(self.record.id, partial(_remembering, name=unit.name, predictor=kept))

    def _await(self, unit: Unit) -> None:
        """Wait until the version's pods are ready, and KServe has seen what was asked for."""
        seconds = self.config.release.ready_seconds
        self.say(f"{unit.name}: waiting for {self.version}, at most {seconds:g} s")

        def decided(found: JsonDict | None) -> bool:
            state = spec.read_state(found) if found else None
            mine = state.of(self.version) if state else None
            return mine is None or bool(mine.failure) or (mine.ready and state is not None and state.current)

        found = self.cluster.wait(unit.name, decided, seconds)
        mine = spec.read_state(found).of(self.version) if found else None
        if mine is None:
            raise ReleaseError(self._vanished(unit))
        if mine.failure:
            raise ReleaseError(f"{self.version} cannot be loaded: {mine.failure}")
        if not mine.ready:
            raise ReleaseError(
                f"{self.version} was not ready within {seconds:g} s (release.ready_seconds); see `kubectl describe pod "
                f"-l app=isvc.{mine.service(unit.name)}`"
            )

    def _await_current(self) -> None:
        def seen(found: JsonDict | None) -> bool:
            return found is None or spec.read_state(found).current

        for unit in self.units:
            self.cluster.wait(unit.name, seen, self.config.release.ready_seconds)

    def _await_stable(self, unit: Unit) -> None:
        def settled(found: JsonDict | None) -> bool:
            state = spec.read_state(found) if found else None
            return state is None or (state.current and state.stable.ready)

        self.cluster.wait(unit.name, settled, self.config.release.ready_seconds)

    def _measure(self, weight: int) -> None:
        """Set both sides' figures beside each other until they say something.

        Raises:
            ReleaseError: the canary is worse, or nothing can be said and ``inconclusive`` is ``fail``.
        """
        ramp = self.config.release.ramp
        sides = [self._sides(unit) for unit in self.units if not self._is_promoted(unit)]
        while True:
            passed = sides[0].seconds
            if passed >= ramp.step_seconds:
                found = [side.compare() for side in sides]
                worst = max(found, key=lambda one: ("pass", "inconclusive", "fail").index(one.verdict))
                last = passed >= ramp.step_seconds + ramp.wait_seconds
                if worst.verdict != "inconclusive" or last:
                    break
                self.say(f"{weight} %: {worst.sentence}; waiting for more requests")
            left = ramp.step_seconds + (ramp.wait_seconds if passed >= ramp.step_seconds else 0.0) - passed
            self.sleep(min(_LOOK_SECONDS, max(0.05, left)))
            self._still_good()
        figures = {side.name: one.figures for side, one in zip(sides, found, strict=True)}
        self._note(f"ramp {weight}", worst.verdict, worst.sentence, figures)
        self.say(f"{weight} %: {worst.verdict}: {worst.sentence}")
        if worst.verdict == "fail" or (worst.verdict == "inconclusive" and ramp.inconclusive == "fail"):
            raise ReleaseError(f"at {weight} % {worst.sentence}")

    def _sides(self, unit: Unit) -> Sides:
        state, mine = self._mine(unit)
        apps = f"isvc.{state.stable.service(unit.name)}", f"isvc.{mine.service(unit.name)}"
        return Sides(self.cluster, self.config, unit.name, *apps)

    def _still_good(self) -> None:
        """
        Raises:
            ReleaseError: a canary is not ready any more.
        """
        for unit in self.units:
            _, mine = self._mine(unit)
            if mine.failure or not mine.ready:
                raise ReleaseError(f"{self.version} is not ready any more{_because(mine.failure)}")

    def _vanished(self, unit: Unit) -> str:
        return f"somebody has taken {self.version} out of the InferenceService {unit.name} meanwhile"

    def _move_live(self, version: str) -> None:
        """Let ``live`` name a version, unless it does.

        Raises:
            ReleaseError: others move it all the time.
        """
        for _ in range(_ATTEMPTS):
            if self.shelf.pointer("live") == version:
                return
            try:
                self.shelf.promote(version)
            except MovedError:
                continue
        raise ReleaseError(f"live of {self.shelf.address} is moved by others all the time; see who publishes there")

    def _note(self, name: str, verdict: Verdict, sentence: str, figures: JsonDict | None = None) -> None:
        self.record = self.records.note(self.record.id, Step(now(), name, verdict, sentence, figures or {}))

    # ------------------------------------------------------------------------------------------- the policy's servers

    def _make_policy(self) -> None:
        """Let this version's policy have a server, where policies have one of their own, and wait until it is ready."""
        if not self.apart:
            return
        settings = self.config.release
        name = spec.policy_service(settings, self.version)
        if self.cluster.get(name) is None:
            if settings.strategy == "replace":
                self._make_room(name)
            self.say(f"{name}: starting, at most {settings.ready_seconds:g} s")
            self._apply(
                spec.as_service(
                    self.cluster.namespace, name, spec.of_policy(settings, self.shelf.address, self.version)
                )
            )
        self._await_policy(name)

    def _make_room(self, name: str) -> None:
        """End the policies' servers that are there; the TRM answers until the new one does."""
        for other, found in self._policies().items():
            if other != name:
                self.record = self.records.change(
                    self.record.id,
                    partial(_remembering, name=other, predictor=found["spec"]["predictor"]),
                )
                self.say(f"{other}: ends, to make room; the TRM answers until {name} does")
                self.cluster.delete(other)

    def _await_policy(self, name: str) -> None:
        def decided(found: JsonDict | None) -> bool:
            state = spec.read_state(found) if found else None
            return state is None or bool(state.stable.failure) or (state.current and state.stable.ready)

        seconds = self.config.release.ready_seconds
        found = self.cluster.wait(name, decided, seconds)
        state = spec.read_state(found) if found else None
        if state is None or not state.stable.ready:
            why = state.stable.failure if state else "somebody has deleted it"
            raise ReleaseError(f"{name} is not ready after {seconds:g} s at most{_because(why)}")

    def _restore_policies(self) -> None:
        """Let the policies' servers that made room be there again."""
        prefix = f"{self.config.release.name}-policy-"
        gone = [name for name in self.record.restore if name.startswith(prefix) and self.cluster.get(name) is None]
        if gone:
            self.cluster.delete(spec.policy_service(self.config.release, self.version))
        for name in gone:
            self.say(f"{name}: starting again")
            restored = spec.as_service(self.cluster.namespace, name, self.record.restore[name])
            self._apply(restored, force=True)
            self._await_policy(name)

    def _drop_policies(self) -> None:
        """End the policies' servers that no version which is there asks."""
        if not self.config.release.policy:
            return
        state = self._state(self.units[-1])
        used = {spec.policy_service(self.config.release, version) for version in (state.versions if state else ())}
        for name in self._policies().keys() - used:
            self.say(f"{name}: ends")
            self.cluster.delete(name)

    def _policies(self) -> dict[str, JsonDict]:
        prefix = f"{self.config.release.name}-policy-"
        found = {one["metadata"]["name"]: one for one in self.cluster.services()}
        return {name: one for name, one in found.items() if name.startswith(prefix)}


def begin(
    config: Config, cluster: Cluster, shelf: Shelf, version: str, say: Say, *, name: str = "", take_over: bool = False
) -> Release:
    """A release of a version, or the one of it that is under way, to go on with.

    Args:
        name: the release's own; one is made of the time where it is empty.

    Raises:
        ArtifactError: the shelf has no such version.
        ReleaseError: another release is under way, or this one has ended.
    """
    shelf.check(version)
    records, settings = Records(shelf), config.release
    found = cluster.get(settings.name)
    state = spec.read_state(found) if found else None
    other = records.under_way()
    if not name and other is not None and other.version == version:
        name = other.id
    name = name or f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{uuid.uuid4().hex[:6]}"
    before = state.stable.version if state else None
    record = records.begin(
        new_record(name, version, None if before == version else before, cluster.namespace, settings.name)
    )
    return Release(config, cluster, shelf, record, say, take_over)


def resume(config: Config, cluster: Cluster, shelf: Shelf, say: Say, name: str = "") -> Release | None:
    """The release of this name, or the one that is under way; None where there is none."""
    records = Records(shelf)
    record = records.read(name) if name else records.under_way()
    return None if record is None else Release(config, cluster, shelf, record, say)


def _remembering(record: Record, name: str, predictor: JsonDict) -> Record:
    return record if name in record.restore else replace(record, restore={**record.restore, name: predictor})


def _making(record: Record, name: str) -> Record:
    return record if name in record.made else replace(record, made=(*record.made, name))


def _because(failure: str) -> str:
    return f": {failure}" if failure else ""
