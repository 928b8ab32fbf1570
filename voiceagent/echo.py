"""Whether what the microphone hears is the agent's own voice, come back from the loudspeaker. Pure numpy; every time is passed in.

    gate.played(samples, rate_hz, at)        # the agent's audio, and when the caller's queue plays it
    if gate.origin(window, ended) is Origin.AGENT: ...     # a window of the microphone, and when its last sample was spoken

Nothing is cancelled and nobody's voice is changed: the gate compares levels. In each of ten bands the echo of a loudspeaker is as loud as
what was played, moved by one delay and one coupling. Both are learned while the agent speaks, for all delays up to 0.6 s side by side; the right delay is the one
at which the coupling varies least. A window is explained when hardly any of its energy lies above what that predicts, and is somebody else's when much
of it lies far above. Where the client
cancels its echo the coupling is learned as next to nothing, so nothing is explained and nobody's voice is lost.

Sources: the coupling factor and its minimum over delays are those of acoustic echo suppression with a level model, as in C. Avendano, "Acoustic echo
suppression in the STFT domain" (WASPAA 2001), with levels per band in place of bins.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from voiceagent.backends import INPUT_RATE_HZ, Samples
from voiceagent.barge_in import Origin
from voiceagent.events import DUCK_DB

# L: delays looked at. B: bands. Levels are dB of mean power; 0 dB is a full-scale square wave.
Levels = NDArray[np.float32]

HOP_S = 0.016
"""Resolution of the delay: half a window of the voice detector."""
LAGS = 40
"""[L] Delays from 0 to 0.62 s: a client's jitter buffer, its loudspeaker, the way through the room and the network."""
MAX_DELAY_S = LAGS * HOP_S
EDGES_HZ = (200, 400, 600, 800, 1050, 1350, 1700, 2100, 2600, 3200, 3900)
"""[B + 1] About a critical band and a half each, within what a telephone carries."""
BANDS = len(EDGES_HZ) - 1
FLOOR_DB = -90.0
LEAST_LOUD_DB = -35.0
"""A voice has moments as loud as this in every band."""
BATCH = 8
"""Windows that are learned from together: an eighth of the calls to numpy, which are most of the cost."""
FIRST_NOISE_DB = -60.0
"""A microphone's own noise in a band, until it is known: taken too loud, a caller would be part of it."""
FIRST_BATCH = 1
"""The same while little is known: in the first second each window decides whether the agent hears itself or is ducked."""
BATCH_S = 0.5
"""The agent's audio whose levels are taken together."""
MAX_HOPS = 20_000
"""Levels kept of what has yet to be played: five minutes."""
LEAST_BANDS = 4
"""Of a window that tells whether the client has turned the agent down; and of an echo."""
_HISTORY = LAGS + 2 * BATCH + 2
_TAIL = 20
"""Hops that an echo may outlast what was played."""


@dataclass(frozen=True, slots=True)
class EchoSettings:
    """How echo is told from a caller. Values were set on twenty made scenes; `benchmarks/barge_in.py` makes others."""

    margin_db: float = 8.0
    """Above what is predicted before energy counts as the caller's."""
    explained: float = 0.35
    """Share of the window's energy that may lie above the prediction."""
    clear_db: float = 12.0
    """Above what is predicted, where so large a share of the energy as `explained` is never the agent's for two windows on end: once in three minutes of
    echo in 24 made rooms."""
    spread_db: float = 7.0
    """Mean deviation of the coupling, over bands and time, above which there is no echo path to be seen."""
    spread_share: float = 0.75
    """The same as a share of the mean over all delays: an echo has one delay, while a caller who speaks at the same time fits none better than another."""
    learn_windows: int = 8
    """Windows with the agent's voice before anything is explained: 0.26 s."""
    memory_windows: int = 40
    """Time constant of what is learned, about 1.3 s of the agent's voice."""
    rise_db: float = 0.15
    """The most that a window raises the coupling: half a second of a caller over the agent must not be learned as echo."""
    fall_db: float = 1.0
    decay_db: float = 2.0
    """By which a room's echo falls in `HOP_S`; 2 dB is a reverberation time of 0.5 s."""
    range_db: float = 25.0
    """Below its loudest the agent's voice counts as no softer than this."""


class EchoGate:
    """One caller's echo."""

    def __init__(self, settings: EchoSettings | None = None) -> None:
        self.settings = settings or EchoSettings()
        self._queued: list[Samples] = []
        """Audio whose levels have not been taken; it plays from `_queued_at` on."""
        self._queued_at = 0.0
        self._queued_rate = 0
        self._coming: deque[tuple[int, Levels]] = deque()
        """Levels of what is played, from which hop on, with the room's decay; those that have been played are dropped."""
        self._played = np.full((_HISTORY, BANDS), FLOOR_DB, np.float32)
        """[H, B] What was played, oldest first, up to `_hop`."""
        self._hop = 0
        self._active_until = -1
        """The last hop at which anything was played."""
        self._held_since: int | None = None
        self._loudest = np.full(BANDS, LEAST_LOUD_DB, np.float32)
        self._windows: list[Samples] = []
        self._heard: list[Levels] = []
        self._hops: list[int] = []
        self._may_be_ducked: list[bool] = []
        """Windows of the microphone that have yet to be learned from, the last of them without levels, and the hop that each ended in."""
        self._coupling = np.zeros((LAGS, BANDS), np.float32)
        self._seen = np.zeros((LAGS, BANDS), np.float32)
        """Windows that each coupling was learned from."""
        self._spread = np.full(LAGS, 99.0, np.float32)
        self._learned = np.zeros(LAGS, np.float32)
        """Windows that each spread was learned from."""
        self._usual = 0.0
        """The mean spread of all delays."""
        self._noise = np.full(BANDS, FIRST_NOISE_DB, np.float32)
        self._lag = 0
        self._is_new = True
        """Whether some delay has been learned from less of the agent's voice than is remembered."""
        self._comes_back: bool | None = None
        """What `comes_back` last told, as long as nothing that it looks at has changed."""
        self._explained = 0

    @property
    def is_learned(self) -> bool:
        """Whether enough of the agent's voice has been heard to know whether it comes back, unless by a way of more than 0.3 s."""
        return bool(self._learned[LAGS // 2] >= 2 * self.settings.learn_windows)

    @property
    def delay_s(self) -> float:
        """The likeliest delay."""
        return max(self._lag - 2, 0) * HOP_S

    def take_explained(self) -> int:
        """Windows that were explained since the last call."""
        explained, self._explained = self._explained, 0
        return explained

    # --- what is played -----------------------------------------------------------------------------------------------

    def played(self, samples: Samples, rate_hz: int, at: float) -> None:
        """The agent's audio plays from `at` on."""
        queued_s = sum(map(len, self._queued)) / self._queued_rate if self._queued else 0.0
        if self._queued and (rate_hz != self._queued_rate or abs(self._queued_at + queued_s - at) > HOP_S / 2):
            self._take_levels()
            queued_s = 0.0
        if not self._queued:
            self._queued_at, self._queued_rate = at, rate_hz
        self._queued.append(samples)
        if queued_s + len(samples) / rate_hz >= BATCH_S:
            self._take_levels()

    def cut(self, at: float) -> None:
        """Nothing is played from `at` on, whatever was announced. During a hold `at` is by the clock that stood still when it began."""
        self._take_levels()
        hop = math.ceil(at / HOP_S)
        if self._held_since is not None and hop <= self._held_since:
            self._held_since = None  # Nothing is left that waits.
        self._coming = deque((start, levels[: hop - start]) for start, levels in self._coming if start < hop)

    def skip(self, since: float, until: float) -> None:
        """Nothing that was announced for between the two is played: what comes behind it is played so much sooner."""
        self._take_levels()
        first, last = math.ceil(since / HOP_S), math.ceil(until / HOP_S)
        kept = [(start, levels[: max(first - start, 0)]) for start, levels in self._coming]
        moved = [(max(start, last) - (last - first), levels[max(last - start, 0) :]) for start, levels in self._coming]
        self._coming = deque((start, levels) for start, levels in (*kept, *moved) if len(levels))

    def hold(self, at: float) -> None:
        """Nothing is played from `at` on until `resume`."""
        if self._held_since is None:
            self._take_levels()
            self._held_since = math.ceil(at / HOP_S)

    def resume(self, at: float) -> None:
        """What was held is played from `at` on."""
        if self._held_since is None:
            return
        moved, self._held_since = math.ceil(at / HOP_S) - self._held_since, None
        self._coming = deque((start + moved, levels) for start, levels in self._coming)
        self._queued_at += moved * HOP_S

    def _take_levels(self) -> None:
        if not self._queued:
            return
        samples = np.concatenate(self._queued)
        self._queued.clear()
        levels = _hop_levels(samples, self._queued_rate)
        # The room: after each hop its level falls by so much a hop, and lasts as long as that is above the next.
        levels = np.concatenate([levels, np.full((_TAIL, BANDS), FLOOR_DB, np.float32)])
        fall = (self.settings.decay_db * np.arange(len(levels), dtype=np.float32))[:, None]
        levels = np.maximum.accumulate(levels + fall) - fall
        self._coming.append((round(self._queued_at / HOP_S), levels))
        while sum(len(levels) for _, levels in self._coming) > MAX_HOPS:
            self._coming.popleft()  # Nobody listens: nothing else would drop them.

    def _advance(self, hop: int) -> None:
        """Let time go on to `hop`."""
        steps = hop - self._hop
        if steps <= 0:
            return
        first = hop - min(steps, _HISTORY) + 1
        fresh = np.full((hop - first + 1, BANDS), FLOOR_DB, np.float32)
        until = hop if self._held_since is None else min(hop, self._held_since)
        for start, levels in self._coming:
            rows = levels[max(first - start, 0) : max(until + 1 - start, 0)]
            if len(rows):
                at = max(start - first, 0)
                fresh[at : at + len(rows)] = np.maximum(fresh[at : at + len(rows)], rows)
                self._active_until = max(self._active_until, first + at + len(rows) - 1)
        while self._coming and self._held_since is None and self._coming[0][0] + len(self._coming[0][1]) <= hop:
            self._coming.popleft()
        self._played = np.concatenate([self._played, fresh])[-_HISTORY:]
        self._loudest = np.maximum(np.maximum(self._loudest - 0.02 * len(fresh), LEAST_LOUD_DB), fresh.max(axis=0))
        self._comes_back = None
        self._hop = hop

    # --- what is heard ------------------------------------------------------------------------------------------------

    def origin(self, window: Samples, ended: float, *, is_voiced: bool = True, may_be_ducked: bool = False) -> Origin:
        """Take the microphone's next window, whose last sample was spoken at `ended`. Some clients play what `may_be_ducked` by `DUCK_DB` softer.

        Returns:
            Whose voice it may be; unknown for a window that is not `is_voiced`, which is only learned from, later.
        """
        hop = math.floor(ended / HOP_S)
        if self._queued and self._queued_at <= ended:
            self._take_levels()
        if not self._coming and hop - self._active_until > LAGS:
            self._forget_windows()
            return Origin.UNKNOWN
        if hop < self._hop - 2 or (self._hops and not self._hops[-1] <= hop <= self._hops[0] + 2 * BATCH):
            # Time has jumped: a client that stood still, or sent what it had held back; or a message came sooner than all before.
            self._forget_windows()
            if hop < self._hop:
                return Origin.UNKNOWN
        self._windows.append(window)
        self._hops.append(hop)
        self._may_be_ducked.append(may_be_ducked)
        is_full, was_known = len(self._hops) >= (FIRST_BATCH if self._is_new else BATCH), self.comes_back
        if not (is_full or (is_voiced and was_known)):
            return Origin.UNKNOWN
        self._advance(hop)
        self._heard.append(_levels(np.stack(self._windows), INPUT_RATE_HZ))
        self._windows.clear()
        heard, origin = self._heard[-1][-1], Origin.UNKNOWN
        if is_voiced and was_known:
            origin = self._origin(heard, hop, may_be_ducked=may_be_ducked)
        if is_full:
            self._learn(np.concatenate(self._heard), np.array(self._hops), np.array(self._may_be_ducked))
            self._forget_windows()
        if is_voiced and not was_known and self.comes_back:
            origin = self._origin(heard, hop, may_be_ducked=may_be_ducked)
        self._explained += origin is Origin.AGENT
        return origin

    def _forget_windows(self) -> None:
        self._windows.clear()
        self._heard.clear()
        self._hops.clear()
        self._may_be_ducked.clear()

    @property
    def comes_back(self) -> bool:
        """The agent's voice comes back to the microphone: the likeliest delay has been seen often enough, and its coupling varies little."""
        if self._comes_back is None:
            self._comes_back = self._is_path_seen()
        return self._comes_back

    def _is_path_seen(self) -> bool:
        settings = self.settings
        if self._learned[self._lag] < settings.learn_windows:
            return False
        if self._spread[self._lag] >= min(settings.spread_db, settings.spread_share * self._usual):
            return False
        # A voice fills half of the bands; by fewer levels anything can be explained.
        if self._seen[self._lag].sum() < settings.learn_windows * BANDS / 2:
            return False
        # A delay at which nothing has been heard at all fits well, too: an echo is louder than the microphone's own noise.
        is_heard = self._loudest + self._coupling[self._lag] > self._noise + settings.margin_db
        return int(np.count_nonzero(is_heard)) >= LEAST_BANDS

    def _origin(self, heard: Levels, hop: int, *, may_be_ducked: bool) -> Origin:
        at = _HISTORY - 1 - (self._hop - hop) - self._lag
        least = self._loudest - self.settings.range_db
        echo = np.maximum(self._played[at], least) + self._coupling[self._lag]
        is_strong = self._played[at] > least
        if may_be_ducked and is_strong.sum() >= LEAST_BANDS:
            # An echo adds to what else there is, so bands far below it tell that it is softer: the client has turned it down.
            over = np.quantile((heard - np.maximum(echo, self._noise))[is_strong], 0.25)
            echo += np.clip(over + self.settings.spread_db, -DUCK_DB, 0.0)
        predicted = np.maximum(echo, self._noise)
        power = np.exp2(_LOG2 * heard)
        settings, most = self.settings, self.settings.explained * power.sum()
        if power[heard > predicted + settings.margin_db].sum() < most:
            return Origin.AGENT
        return Origin.CALLER if power[heard > predicted + settings.clear_db].sum() >= most else Origin.UNKNOWN

    def _learn(self, heard: Levels, hops: NDArray[np.int64], may_be_ducked: NDArray[np.bool_]) -> None:
        """Heard [N, B] in windows that ended in these hops [N], while these may have been ducked [N]."""
        settings = self.settings
        self._noise = np.minimum(self._noise + 0.03 * len(heard), heard.min(axis=0))
        rows = _HISTORY - 1 - (self._hop - hops)[:, None] - np.arange(LAGS)  # [N, L]
        played = self._played[rows]  # [N, L, B]
        least = self._loudest - settings.range_db
        is_strong = (played > least).astype(np.float32)
        predicted = np.maximum(np.maximum(played, least) + self._coupling, self._noise)
        change = (heard[:, None, :] - predicted) * is_strong
        if may_be_ducked.any():
            lag = int(np.argmin(np.where(self._learned >= settings.learn_windows / 2, self._spread, 99.0)))
            mean = change[:, lag].sum(axis=1) / np.maximum(is_strong[:, lag].sum(axis=1), 1.0)
            softer = may_be_ducked & (mean < -DUCK_DB / 2)
            change += (DUCK_DB * softer)[:, None, None].astype(np.float32) * is_strong
        strong = is_strong.sum(axis=0)  # [L, B]
        self._seen += strong
        mean = change.sum(axis=0) / np.maximum(strong, 1.0)
        step = (
            np.minimum(np.maximum(strong / np.maximum(self._seen, 1.0), strong / settings.memory_windows), 1.0) * mean
        )
        limited = np.clip(step, -settings.fall_db * strong, settings.rise_db * strong)
        self._coupling += np.where(self._seen > 2 * settings.learn_windows, limited, step)
        windows = is_strong.any(axis=2).sum(axis=0)  # [L]
        self._learned += windows
        error = np.minimum(np.abs(change), 20.0).sum(axis=(0, 2)) / np.maximum(is_strong.sum(axis=(0, 2)), 1.0)
        pace = np.minimum(np.maximum(windows / np.maximum(self._learned, 1.0), windows / settings.memory_windows), 1.0)
        self._spread += pace * (error - self._spread)
        self._lag = int(np.argmin(np.where(self._learned >= settings.learn_windows, self._spread, 99.0)))
        known = self._learned > 0
        self._usual = float((self._spread * known).sum() / max(int(known.sum()), 1))
        self._is_new = bool(self._learned.min() < settings.memory_windows)
        self._comes_back = None


_LOG2 = np.float32(math.log2(10) / 10)


@functools.cache
def _weights(size: int, rate_hz: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """[size] the analysis window, and [bins, B] which bins make a band's mean power."""
    taper = np.hanning(size + 1)[:-1].astype(np.float32)
    frequencies = np.fft.rfftfreq(size, 1 / rate_hz)
    bands = np.stack(
        [(frequencies >= low) & (frequencies < high) for low, high in itertools.pairwise(EDGES_HZ)], axis=1
    )
    return taper, (bands * (2.0 / (size * float(np.square(taper).sum())))).astype(np.float32)


def _levels(frames: NDArray[np.float32], rate_hz: int) -> Levels:
    """[N, B] in dB, of frames [N, size]."""
    taper, bands = _weights(frames.shape[1], rate_hz)
    spectrum = np.fft.rfft(frames * taper, axis=1)
    power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32) @ bands
    levels: Levels = np.maximum(10 * np.log10(power + 1e-12), FLOOR_DB).astype(np.float32)
    return levels


@functools.cache
def _fast_size(size: int) -> int:
    """The next length without a prime factor above 5: of 706 samples, 32 ms at 22,050 Hz, a transform takes four times as long as of 720."""
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def _hop_levels(samples: Samples, rate_hz: int) -> Levels:
    """[N, B] One row per `HOP_S`, each over two hops of audio; the last, incomplete hop is filled with silence."""
    hop = HOP_S * rate_hz
    size = _fast_size(round(2 * hop))
    count = math.ceil(len(samples) / hop)
    if count == 0:
        return np.zeros((0, BANDS), np.float32)
    padded = np.concatenate([samples, np.zeros(size, np.float32)])
    starts = np.minimum(np.round(np.arange(count) * hop).astype(int), len(samples))
    return _levels(np.lib.stride_tricks.sliding_window_view(padded, size)[starts], rate_hz)
