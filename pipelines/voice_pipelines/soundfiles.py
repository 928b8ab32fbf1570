"""Sound files in and out, for the command line, the examples and the tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from voiceagent.audio import StreamingResampler, mono, to_int16
from voiceagent.backends import INPUT_RATE_HZ, Samples


def read_sound(path: Path, *, rate_hz: int = INPUT_RATE_HZ) -> Samples:
    """Any file that libsndfile reads (WAV, FLAC, Ogg, MP3, ...) as mono float32 at `rate_hz`.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is not a sound file that tells its own rate, or has samples that are no numbers.
    """
    import soundfile

    with path.open("rb") as file:
        try:
            samples, file_rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{path} is not a sound file that can be read: {error}") from error
        except TypeError as error:  # Of a file whose name ends in `.raw`.
            raise ValueError(f"{path} has no header that tells its rate and channels: {error}") from error
    if not np.isfinite(samples).all():
        raise ValueError(f"{path} has samples that are no numbers")
    resampler = StreamingResampler(int(file_rate_hz), rate_hz)
    return np.concatenate([resampler.push(mono(samples)), resampler.flush()])


def write_sound(path: Path, samples: Samples, rate_hz: int) -> None:
    """Mono samples as a sound file of 16 bits; the file name says which kind (`.wav`, `.flac`).

    Raises:
        OSError: If the file cannot be written.
        ValueError: If the kind of file is unknown.
    """
    import soundfile

    kind = kind_of(path)
    with path.open("wb") as file:
        soundfile.write(file, to_int16(samples), rate_hz, format=kind, subtype="PCM_16")


def kind_of(path: Path) -> str:
    """Which kind of sound file a name asks for, as libsndfile calls it.

    Raises:
        ValueError: If it is unknown.
    """
    import soundfile

    kind = path.suffix[1:].upper()
    if kind not in soundfile.available_formats():
        raise ValueError(f"{path.name}: expected a name that ends in .wav or .flac")
    return kind
