"""The director: an event of the game and the story so far become the next shot's caption, and the story after it.

`Director` is pure: no clock, no chance, no files. One state and one event give the same answer on every machine; what
varies between shots (angles, camera moves) follows from the shot's number and the state's seed. It neither talks to
games nor makes video: a bridge hands it events and carries its directions to a session.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from shotstream.bridge.director import recognise, stage
from shotstream.bridge.director.eventmap import DIRECTED, EventMap, Rule
from shotstream.bridge.director.facts import AT, CastMember, Direction, Event, Scalar, ShotRecord, StoryState
from shotstream.bridge.director.grammar import Plan, Wish, plan_shot
from shotstream.bridge.director.text import MAX_FIELD, checked_caption, clean_event, clean_within, listed
from shotstream.bridge.director.wording import event_variables, shot_caption
from shotstream.runtime.errors import UserError


@dataclass(frozen=True)
class Director:
    """Directs by one event map. Holds no story: that is in the `StoryState` which every method takes and returns.

    All methods raise UserError, with the state untouched, for what cannot be shown."""

    chart: EventMap

    @property
    def name(self) -> str:
        """The style's name."""
        return self.chart.name

    # ------------------------------------------------------------------------------------ what a bridge calls
    def direct(self, state: StoryState, event: Event) -> tuple[Direction, StoryState]:
        """Answer an event of the game: the next shot, and the story once it is shown.

        Raises UserError for an event without a rule, a cast member or param that is missing, and whatever the model's
        language cannot say."""
        event = clean_event(event)
        return self.direct_by(self.chart.match(event), state, event)

    def direct_by(self, rule: Rule, state: StoryState, event: Event) -> tuple[Direction, StoryState]:
        """As `direct`, by this rule, whatever the event's kind. The event is clean already."""
        where = f"event {event.kind}"
        params = stage.read_params(rule, event)
        staged, focus, thing = stage.before_shot(self.chart, state, rule, event, params)
        actions = self._actions(staged, rule, event, params, focus, where)
        verb = actions.get(event.actor, event.action)
        wish = Wish(
            focus=focus,
            thing=thing,
            insert=self._wants_insert(rule, verb, thing),
            **{part: self._directed(part, event, rule, where) for part in DIRECTED},
        )
        plan = plan_shot(self.chart, staged, wish, where)
        plan = self._with_camera_at_rest(plan, actions, "camera" in event.params, where)
        caption = shot_caption(self.chart, staged, rule, plan, event, params, actions)
        self._check_caption(caption, rule.caption.where if rule.caption else where)
        direction, after = self._answer(state, staged, rule, plan, caption, event.at)
        return direction, stage.after_shot(rule, event, after)

    def scene(
        self,
        state: StoryState,
        *,
        cast: Iterable[CastMember] | None = None,
        place: str | None = None,
        time: str | None = None,
        style: str | None = None,
        mood: str | None = None,
        global_caption: str | None = None,
    ) -> tuple[StoryState, str]:
        """Begin a scene: returns the story in it and its global caption.

        None keeps what was there, or takes the map's default in the first scene. `global_caption` is used as it is,
        until an event changes place, time, style or heroes. The scene's first shot establishes it: full descriptions,
        opening size. Raises UserError for words that the model's language does not have."""
        given = {"place": place, "time": time, "style": style, "mood": mood}
        said = {part: clean_within(text, part) for part, text in given.items() if text is not None}
        return stage.new_scene(self.chart, state, cast, said, global_caption)

    def cut(
        self,
        state: StoryState,
        caption: str | None = None,
        *,
        size: str | None = None,
        subject: str | None = None,
        at: str = "now",
    ) -> tuple[Direction, StoryState]:
        """Cut to a shot that a person asks for.

        caption: used as it is; None: the style words it, with everybody idle. size: None leaves it to the grammar.
        subject: cast keys joined by "+", or words for a thing; None: those of the last shot."""
        return self._cut(state, caption, size, subject, at, "cut")

    def prompt(self, state: StoryState, text: str, *, at: str = "now") -> tuple[Direction, StoryState]:
        """Pass a caption through as it is. Size and subject are read from it as far as it names them."""
        return self._cut(state, text, None, None, at, "prompt")

    # ------------------------------------------------------------------------------------ steps
    def _cut(
        self, state: StoryState, caption: str | None, size: str | None, subject: str | None, at: str, rule: str
    ) -> tuple[Direction, StoryState]:
        if at not in AT:
            raise UserError(f"{rule}: at must be {listed(AT, 'or')}, not '{at}'")
        at = "now" if at == "auto" else at
        forced = self.chart.size(size, rule) if size else ""
        if caption is not None:
            words = checked_caption(caption, "the caption")
            read = recognise.shot(self.chart, state, words)
            record = ShotRecord(forced or read.size, clean_within(subject, "subject") if subject else read.subject)
            direction = Direction(words, None, record.size, record.subject, at, None, rule)
            # Nobody counts as described: the next caption of ours gives the looks in full.
            return direction, state.after_shot(record, ())
        staged, focus, thing = stage.before_cut(self.chart, state, subject)
        insert = bool(thing and not focus and self.chart.grammar.insert)
        wish = Wish(focus, thing, insert=insert, size=forced or (self.chart.grammar.insert if insert else ""))
        plan = plan_shot(self.chart, staged, wish, rule)
        fixed = Rule(rule, at=at)
        words = shot_caption(self.chart, staged, fixed, plan, Event(rule, target=thing), {}, {})
        self._check_caption(words, rule)
        return self._answer(state, staged, fixed, plan, words, at)

    def _actions(
        self,
        state: StoryState,
        rule: Rule,
        event: Event,
        params: dict[str, Scalar],
        focus: tuple[str, ...],
        where: str,
    ) -> dict[str, str]:
        """Cast key -> what that one does, for the actor and the target."""
        variables = event_variables(self.chart, state, event, params)
        said = rule.action.render(variables) if rule.action else event.action
        language = self.chart.language
        if not said and rule.caption is None and rule.show != "whoever" and event.actor in focus:
            known = f"; actions are {listed(language.actions)}" if language else ', as in "opens the door"'
            raise UserError(f"{where} needs an action for '{event.actor}'{known}")
        actions = {event.actor: said} if event.actor and said else {}
        if rule.reaction and state.member(event.target):
            actions[event.target] = rule.reaction.render(variables)
        return {key: language.action(text, where) if language else text for key, text in actions.items()}

    def _wants_insert(self, rule: Rule, verb: str, thing: str) -> bool:
        if rule.insert is not None or not thing:
            return bool(rule.insert)
        return any(f"{verb} ".lower().startswith(f"{known} ") for known in self.chart.grammar.object_verbs)

    def _directed(self, part: str, event: Event, rule: Rule, where: str) -> str:
        """Size, angle or camera as the event says, else as the rule says, else empty."""
        said = event.params.get(part)
        if said is None:
            return str(getattr(rule, part))
        found: str = getattr(self.chart, part)(str(said)[:MAX_FIELD], where)
        return found

    def _with_camera_at_rest(self, plan: Plan, actions: dict[str, str], asked: bool, where: str) -> Plan:
        """The plan with the camera at rest where the model never saw it move; UserError if the event asked for it."""
        language, rest = self.chart.language, next(iter(self.chart.cameras))
        if language is None or plan.camera == rest:
            return plan
        moving = [actions[key] for key in plan.seen if actions.get(key) in language.still_camera]
        if not moving:
            return plan
        if asked:
            raise UserError(f"{where}: the camera is {rest} while somebody {moving[0]}, not '{plan.camera}'")
        return replace(plan, camera=rest)

    def _check_caption(self, caption: str, where: str) -> None:
        if not caption:
            raise UserError(f"{where}: the caption is empty")
        if self.chart.language:
            sizes = [size.words for size in self.chart.sizes.values()]
            self.chart.language.check_shot(caption, sizes, self.chart.cameras.values(), where)

    def _answer(
        self, before: StoryState, staged: StoryState, rule: Rule, plan: Plan, caption: str, at: str
    ) -> tuple[Direction, StoryState]:
        changed = staged.global_caption if staged.global_caption != before.global_caption else None
        when = rule.at if at == "auto" else at
        direction = Direction(caption, changed, plan.size, plan.subject, when, rule.chunks, rule.name)
        after = staged.after_shot(ShotRecord(plan.size, plan.subject), plan.seen)
        return direction, after
