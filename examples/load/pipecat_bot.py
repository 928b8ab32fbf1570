"""Pipecat with stand-ins for its models, behind Twilio's dialect: what our own stand-ins are compared with.

Runs in an environment of its own that has `pipecat-ai`, and imports nothing of ours. The pipeline is the one of Pipecat's telephony examples:
websocket transport with the Twilio serializer, Silero VAD, a segmented recogniser, context aggregators, language model, voice. The
end of a turn is silence alone, `--hangover` seconds of it, shared between the VAD and the turn's own timer as Pipecat recommends.
Metrics, tracing, RTVI and turn tracking are off, as nobody looks at them here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import socket
import struct
from collections.abc import AsyncGenerator

import uvicorn
from fastapi import FastAPI, WebSocket
from loguru import logger
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VAD_STOP_SECS, VADParams
from pipecat.frames.frames import (
    Frame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.services.llm_service import LLMService
from pipecat.services.settings import LLMSettings, STTSettings, TTSSettings
from pipecat.services.stt_service import SegmentedSTTService
from pipecat.services.tts_service import TTSService
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams, FastAPIWebsocketTransport
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies, default_user_turn_start_strategies
from pipecat.utils.time import time_now_iso8601
from pipecat.workers.runner import WorkerRunner

RATE_HZ = 8_000
PIECE_S = 0.1


class StandInSTT(SegmentedSTTService):
    """Hears the same words in every utterance."""

    def __init__(self, text: str, delay_s: float) -> None:
        settings = STTSettings(model=None, language=None)
        super().__init__(trailing_silence_secs=0.0, ttfs_p99_latency=delay_s, settings=settings)
        self._text, self._delay_s = text, delay_s

    @property
    def wants_wav_segments(self) -> bool:
        return False

    async def run_stt(self, audio: bytes) -> AsyncGenerator[Frame | None, None]:
        if self._delay_s > 0:
            await asyncio.sleep(self._delay_s)
        yield TranscriptionFrame(self._text, self._user_id, time_now_iso8601())


class StandInLLM(LLMService):
    """Writes the same reply to everything, word by word and all at once."""

    def __init__(self, text: str, delay_s: float) -> None:
        settings = LLMSettings(
            model=None,
            system_instruction=None,
            temperature=None,
            max_tokens=None,
            top_p=None,
            top_k=None,
            frequency_penalty=None,
            presence_penalty=None,
            seed=None,
            filter_incomplete_user_turns=False,
            user_turn_completion_config=None,
        )
        super().__init__(settings=settings)
        self._words = [word + " " for word in text.split()]
        self._delay_s = delay_s

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMContextFrame):
            await self.push_frame(frame, direction)
            return
        await self.push_frame(LLMFullResponseStartFrame())
        if self._delay_s > 0:
            await asyncio.sleep(self._delay_s)
        for word in self._words:
            await self._push_llm_text(word)
        await self.push_frame(LLMFullResponseEndFrame())


class StandInTTS(TTSService):
    """Speaks a tone of a length that the text decides, in pieces of 0.1 s."""

    def __init__(self, second_per_char: float, delay_s: float) -> None:
        settings = TTSSettings(model=None, voice=None, language=None)
        super().__init__(push_start_frame=True, push_stop_frames=True, sample_rate=RATE_HZ, settings=settings)
        count = round(PIECE_S * RATE_HZ)
        wave = [round(9830 * math.sin(2 * math.pi * 440 * at / RATE_HZ)) for at in range(count)]
        self._piece = struct.pack(f"<{count}h", *wave)
        self._second_per_char, self._delay_s = second_per_char, delay_s

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        if self._delay_s > 0:
            await asyncio.sleep(self._delay_s)
        left = 2 * round(len(text.strip()) * self._second_per_char * RATE_HZ)
        while left > 0:
            piece = self._piece[:left]
            left -= len(piece)
            yield TTSAudioRawFrame(piece, RATE_HZ, 1, context_id=context_id)


async def bot(websocket: WebSocket, args: argparse.Namespace) -> None:
    """One call."""
    await websocket.accept()
    start = {}
    while start.get("event") != "start":
        start = json.loads(await websocket.receive_text())
    serializer = TwilioFrameSerializer(
        start["start"]["streamSid"], params=TwilioFrameSerializer.InputParams(auto_hang_up=False)
    )
    transport = FastAPIWebsocketTransport(
        websocket, FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True, serializer=serializer)
    )
    stop_s = min(VAD_STOP_SECS, args.hangover)
    stop = SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=args.hangover - stop_s)
    strategies = UserTurnStrategies(start=default_user_turn_start_strategies(), stop=[stop])
    vad = SileroVADAnalyzer(params=VADParams(stop_secs=stop_s))
    aggregators = LLMContextAggregatorPair(
        LLMContext([{"role": "system", "content": "Be brief."}]),
        user_params=LLMUserAggregatorParams(user_turn_strategies=strategies, vad_analyzer=vad),
    )
    pipeline = Pipeline(
        [
            transport.input(),
            StandInSTT(args.heard, args.asr_s),
            aggregators.user(),
            StandInLLM(args.reply, args.llm_s),
            StandInTTS(args.second_per_char, args.tts_s),
            transport.output(),
            aggregators.assistant(),
        ]
    )
    worker = PipelineWorker(
        pipeline,
        params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ),
        enable_rtvi=False,
        enable_turn_tracking=False,
    )

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport: object, client: object) -> None:
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hangover", type=float, default=0.5)
    for name in ("asr-s", "llm-s", "tts-s"):
        parser.add_argument(f"--{name}", type=float, default=0.0)
    parser.add_argument("--heard", required=True)
    parser.add_argument("--reply", required=True)
    parser.add_argument("--second-per-char", type=float, required=True)
    args = parser.parse_args()
    logger.remove()
    app = FastAPI()

    @app.websocket("/telephony/twilio")
    async def twilio(websocket: WebSocket) -> None:
        await bot(websocket, args)

    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    config = uvicorn.Config(app, log_level="warning", ws_per_message_deflate=False, timeout_graceful_shutdown=3)
    print(f"pipecat listens on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
