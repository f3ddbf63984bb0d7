"""Two pictures and two sounds of one second: a photograph and a drawing, speech and music.

A photograph has soft edges and every shade, a drawing hard edges and flat areas. Speech has noise
and pauses, music has lines in its spectrum and attacks. Sources, authors and licences of the files
are in ``data/README.md``.
"""

from __future__ import annotations

import math
import wave
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image, ImageDraw

    Sound: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]

_DATA = Path(__file__).parent / "data"
_SIZE = (160, 120)
_RED, _BLUE, _GREEN, _BLACK = (214, 40, 40), (0, 92, 185), (58, 145, 63), (0, 0, 0)
#: Hertz and seconds of the music's three notes: A, C sharp and E, one after the other.
_NOTES = ((220.0, 0.0), (277.18, 0.15), (329.63, 0.3))
_HARMONICS = 6


def load_photograph() -> Image.Image:
    """Return the photograph of a cat, RGB, 128 wide and 96 high."""
    from PIL import Image

    with Image.open(_DATA / "photograph.jpg") as image:
        return image.convert("RGB")


def make_drawing() -> Image.Image:
    """Return flat areas, thin lines and strokes like writing, RGB, 160 wide and 120 high."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", _SIZE, (255, 255, 255))
    pen = ImageDraw.Draw(image)
    pen.rectangle((8, 8, 70, 60), fill=_RED, outline=_BLACK)
    pen.ellipse((50, 30, 120, 80), fill=_BLUE)
    pen.polygon(((100, 10), (150, 55), (112, 62)), fill=_GREEN, outline=_BLACK)
    for x in range(4, 156, 8):
        pen.line((x, 66, 156 - x, 84), fill=_BLACK)
    _write(pen, top=92)
    _write(pen, top=106)
    return image


def _write(pen: ImageDraw.ImageDraw, top: int) -> None:
    """Draw a line of letter-like strokes; a font would differ from one Pillow to the next."""
    for place, x in enumerate(range(8, 150, 7)):
        if place % 5 == 4:
            continue  # a space between words
        pen.line((x, top, x, top + 9), fill=_BLACK)
        pen.arc((x - 1, top + 3 * (place % 3), x + 5, top + 9), 180, 90 * (place % 4), fill=_BLACK)


def load_speech(rate: int) -> Sound:
    """Return one second of speech, float32, shape ``(rate,)``, values in [-1, 1].

    Args:
        rate: Samples in a second; the recording's 8,000 are interpolated linearly.
    """
    import numpy as np

    with wave.open(str(_DATA / "speech.wav")) as file:
        recorded, frames = file.getframerate(), file.readframes(file.getnframes())
    values = (np.frombuffer(frames, np.uint8).astype(np.float64) - 128) / 128
    wanted = np.arange(rate) * (recorded / rate)
    speech: Sound = np.interp(wanted, np.arange(len(values)), values).astype(np.float32)
    return speech


def make_music(rate: int) -> Sound:
    """Return a broken chord with drumbeats, float32, shape ``(rate,)``, values in [-1, 1].

    Args:
        rate: Samples in a second; harmonics that it can't hold are left out.
    """
    import numpy as np

    time = np.arange(rate) / rate
    mixed = np.zeros(rate)
    for pitch, start in _NOTES:
        mixed += _play_note(np.maximum(time - start, 0), pitch, rate)
    for start in (0.0, 0.45, 0.9):
        mixed += 2 * _beat(np.maximum(time - start, 0))
    # Steps of 16 bit, as a file has: the last bits of a sine differ between processors.
    loudest = np.abs(mixed).max()
    music: Sound = (np.round(mixed / loudest * 32767) / 32768).astype(np.float32)
    return music


def _play_note(time: Any, pitch: float, rate: int) -> Any:
    """Return a note since its start: an attack of 10 ms, then a decay, faster for overtones."""
    import numpy as np

    attack = np.minimum(time / 0.01, 1)
    note = np.zeros_like(time)
    for harmonic in range(1, _HARMONICS + 1):
        if pitch * harmonic < rate / 2:
            decay = np.exp(-2.5 * harmonic * time)
            note += np.sin(2 * math.pi * pitch * harmonic * time) * decay / harmonic
    return note * attack


def _beat(time: Any) -> Any:
    """Return a beat since its start: a tone that falls from 400 Hz and dies within 50 ms."""
    import numpy as np

    phase = 2 * math.pi * (60 * time + 340 * (1 - np.exp(-40 * time)) / 40)
    return np.sin(phase) * np.exp(-60 * time)
