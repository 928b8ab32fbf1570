from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from voiceagent.turn import (
    Agent,
    AudioBegan,
    Caller,
    DuckPlayout,
    EarlierEnded,
    FinishUtterance,
    MutePlayout,
    OpenUtterance,
    Phase,
    PlayoutEnded,
    ReplyCancelled,
    ReplyMade,
    ReplyRequested,
    RestorePlayout,
    SpeechBegan,
    SpeechDropped,
    SpeechEnded,
    StartReply,
    StopPlayout,
    StopReply,
    TranscriptReady,
    TurnEffect,
    TurnInput,
    TurnState,
    VoiceDismissed,
    VoiceDoubted,
    VoiceLasted,
    advance,
)

INPUTS: tuple[TurnInput, ...] = (
    SpeechBegan(interrupts=True),
    SpeechBegan(interrupts=False),
    SpeechEnded(),
    SpeechDropped(),
    TranscriptReady(is_empty=False, wants_reply=True),
    TranscriptReady(is_empty=True, wants_reply=True),
    TranscriptReady(is_empty=False, wants_reply=False),
    ReplyRequested(),
    AudioBegan(),
    ReplyMade(has_audio=True),
    ReplyMade(has_audio=False),
    ReplyCancelled("client_cancelled"),
    EarlierEnded(),
    PlayoutEnded(),
    VoiceDoubted(),
    VoiceLasted(),
    VoiceDismissed(),
)


def run(*inputs: TurnInput, state: TurnState | None = None) -> tuple[TurnState, list[TurnEffect]]:
    state = state or TurnState()
    effects: list[TurnEffect] = []
    for happened in inputs:
        state, more = advance(state, happened)
        effects.extend(more)
    return state, effects


def test_a_spoken_turn_goes_from_idle_through_listening_thinking_and_speaking_to_idle() -> None:
    state, phases = TurnState(), []
    for happened in (
        SpeechBegan(True),
        SpeechEnded(),
        TranscriptReady(False, True),
        AudioBegan(),
        ReplyMade(True),
        PlayoutEnded(),
    ):
        state, _ = advance(state, happened)
        phases.append(state.phase)
    assert phases == [Phase.LISTENING, Phase.THINKING, Phase.THINKING, Phase.SPEAKING, Phase.SPEAKING, Phase.IDLE]


def test_a_turn_with_an_empty_transcript_says_nothing() -> None:
    state, effects = run(SpeechBegan(True), SpeechEnded(), TranscriptReady(is_empty=True, wants_reply=True))
    assert state == TurnState()
    assert effects == [OpenUtterance(), FinishUtterance()]


def test_speech_while_the_reply_is_made_stops_it() -> None:
    thinking, _ = run(SpeechBegan(True), SpeechEnded(), TranscriptReady(False, True))
    for state in (thinking, advance(thinking, AudioBegan())[0]):
        after, effects = advance(state, SpeechBegan(True))
        assert effects == (StopReply("turn_detected"), OpenUtterance())
        assert after.caller is Caller.SPEAKING
        assert after.agent is Agent.QUIET


def test_speech_over_a_reply_that_is_only_playing_stops_the_playout_and_no_reply() -> None:
    state, _ = run(ReplyRequested(), AudioBegan(), ReplyMade(True))
    _, effects = advance(state, SpeechBegan(True))
    assert effects == (StopPlayout(), OpenUtterance())


def test_speech_that_may_not_interrupt_leaves_the_reply_and_is_answered_after_it() -> None:
    state, effects = run(
        ReplyRequested(), AudioBegan(), SpeechBegan(False), SpeechEnded(), TranscriptReady(False, True)
    )
    assert state.owes_reply
    assert effects == [StartReply(), OpenUtterance(), FinishUtterance()]
    state, effects = run(ReplyMade(True), PlayoutEnded(), state=state)
    assert effects == [StartReply()]
    assert state.agent is Agent.THINKING
    assert not state.owes_reply


def test_words_that_are_followed_by_more_speech_are_answered_once() -> None:
    state, effects = run(SpeechBegan(True), SpeechEnded(), SpeechBegan(True), TranscriptReady(False, True))
    assert StartReply() not in effects
    _, effects = run(SpeechEnded(), TranscriptReady(False, True), state=state)
    assert effects.count(StartReply()) == 1


def test_cleared_audio_ends_listening_without_a_transcript() -> None:
    state, effects = run(SpeechBegan(True), SpeechDropped())
    assert state == TurnState()
    assert FinishUtterance() not in effects


@given(st.lists(st.sampled_from(INPUTS), max_size=40))
def test_a_second_reply_never_starts_while_one_is_being_made(inputs: list[TurnInput]) -> None:
    state = TurnState()
    for happened in inputs:
        was_making = state.is_making_reply
        state, effects = advance(state, happened)
        if StartReply() in effects:
            assert state.agent is Agent.THINKING
            has_ended = isinstance(happened, ReplyMade) or any(isinstance(effect, StopReply) for effect in effects)
            assert not was_making or has_ended
        assert not (state.owes_reply and state.agent is Agent.QUIET and state.caller is Caller.SILENT)
        assert not state.earlier_plays or state.is_making_reply


def test_doubt_ducks_only_what_can_be_heard_and_ends_in_a_restore_or_a_stop() -> None:
    playing, _ = run(ReplyRequested(), AudioBegan(), ReplyMade(True))
    ducked, effects = advance(playing, VoiceDoubted())
    assert effects == (DuckPlayout(),) and ducked.phase is Phase.SPEAKING
    assert advance(ducked, VoiceDoubted())[1] == ()
    assert advance(ducked, VoiceDismissed()) == (playing, (RestorePlayout(),))
    stopped, effects = advance(ducked, SpeechBegan(True))
    assert effects == (StopPlayout(), OpenUtterance()) and not stopped.is_ducked
    ended, _ = advance(ducked, PlayoutEnded())
    assert advance(ended, SpeechBegan(True))[1] == (RestorePlayout(), OpenUtterance())
    for state in (TurnState(), run(ReplyRequested())[0]):
        assert advance(state, VoiceDoubted()) == (state, ())
        assert advance(state, VoiceDismissed()) == (state, ())


def test_voice_that_lasts_mutes_only_what_is_ducked_and_ends_as_a_doubt_does() -> None:
    playing, _ = run(ReplyRequested(), AudioBegan(), ReplyMade(True))
    assert advance(playing, VoiceLasted()) == (playing, ())
    ducked, _ = advance(playing, VoiceDoubted())
    muted, effects = advance(ducked, VoiceLasted())
    assert effects == (MutePlayout(),) and muted.is_ducked and muted.phase is Phase.SPEAKING
    assert advance(muted, VoiceLasted()) == (muted, ())
    assert advance(muted, VoiceDismissed()) == (playing, (RestorePlayout(),))
    stopped, effects = advance(muted, SpeechBegan(True))
    assert effects == (StopPlayout(), OpenUtterance()) and not (stopped.is_ducked or stopped.is_muted)
    talking, effects = advance(muted, SpeechBegan(False))
    assert not talking.is_muted and OpenUtterance() in effects


def test_an_agent_that_is_asked_for_more_while_it_plays_is_heard_all_the_while() -> None:
    playing, _ = run(ReplyRequested(), AudioBegan(), ReplyMade(True))
    asked, effects = advance(playing, ReplyRequested())
    assert effects == (StartReply(),) and asked.phase is Phase.SPEAKING
    assert advance(asked, VoiceDoubted())[1] == (DuckPlayout(),)
    stopped, effects = advance(asked, SpeechBegan(True))
    assert effects == (StopReply("turn_detected"), OpenUtterance())
    assert stopped == TurnState(Caller.SPEAKING, owes_reply=True), "nobody has heard the answer"
    assert advance(asked, ReplyMade(False)) == (playing, ()), "a text is not heard, what came before it is"
    assert advance(asked, EarlierEnded()) == run(ReplyRequested())[:1] + ((),)
    assert run(EarlierEnded(), ReplyMade(False), state=asked)[0] == TurnState()
    assert advance(playing, EarlierEnded()) == (playing, ())


def test_every_input_is_accepted_in_every_state() -> None:
    for caller, agent, owes, *others in itertools.product(Caller, Agent, *[(False, True)] * 4):
        for happened in INPUTS:
            state, _ = advance(TurnState(caller, agent, owes, *others), happened)
            assert isinstance(state.phase, Phase)
