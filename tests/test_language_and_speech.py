"""The language model and the speech model are themselves, in their parts and as wholes."""

import io
import os
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from softlab.capture import record
from softlab.datasets.download import folder
from softlab.pretrained import smollm2, whisper
from softlab.pretrained.smollm2 import SmolLM2


def need(name, *modules):
    """The folder of a model; skip where it has not been fetched or a reader is absent."""
    for module in modules:
        pytest.importorskip(module, reason=f"needs {module}: pip install -e '.[models]'")
    try:
        return folder(name)
    except FileNotFoundError:
        pytest.skip(f"needs the weights: softlab fetch {name}")


@pytest.fixture
def small():
    torch.manual_seed(0)
    return SmolLM2(vocabulary=50, width=32, depth=2, heads=4, key_heads=2, inner=48).eval()


def test_rotary_scores_know_only_the_distance_of_two_positions():
    x, y = torch.randn(2, 1, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turn = smollm2.rotation(20, 64, x)
    q, k = (smollm2.rotated(z.expand(20, 64), turn) for z in (x, y))
    scores = q @ k.T
    for shift in (1, 5):
        torch.testing.assert_close(scores[shift:, shift:], scores[:-shift, :-shift])
    assert not torch.allclose(scores[0, 1:], scores[0, :1])
    torch.testing.assert_close(q.norm(dim=-1), x.norm().expand(20))


def test_the_language_model_sees_no_later_token_and_shares_key_heads(small):
    ids = torch.tensor([[3, 9, 4, 1, 7]])
    with record(small) as calls:
        out = small(ids)
    changed = small(functional.pad(ids[:, :3], (0, 2), value=8))
    torch.testing.assert_close(out[:, :3], changed[:, :3])
    assert not torch.allclose(out[:, 3:], changed[:, 3:])
    assert [tuple(calls[0].q.shape), tuple(calls[0].k.shape)] == [(1, 4, 5, 8), (1, 2, 5, 8)]
    assert len(calls) == 2
    assert small(ids, depth=1).shape == out.shape


def test_perplexity_of_a_model_that_knows_nothing_is_the_size_of_its_vocabulary(small):
    small.word.weight.data.zero_()
    assert small.perplexity(torch.tensor([[3, 9, 4, 1, 7]])) == pytest.approx(50)


def test_mel_filters_are_triangles_of_area_one_that_share_their_feet():
    filters = whisper.mel_filters()
    assert filters.shape == (80, 201)
    assert float(filters.min()) == 0
    step = whisper.RATE / whisper.WINDOW
    wide = filters[60:].sum(1) * step  # the low ones are narrower than a few steps of 40 Hz
    torch.testing.assert_close(wide, torch.ones_like(wide), rtol=0.02, atol=0)
    peaks = filters.argmax(1)
    assert bool((peaks.diff() >= 0).all())
    assert int(peaks[-1]) in range(190, 200)


def test_a_tone_is_loudest_in_the_filter_at_its_pitch():
    t = torch.arange(whisper.RATE, dtype=torch.float64) / whisper.RATE
    sound = whisper.spectrogram(torch.sin(2 * torch.pi * 1000 * t))
    assert sound.shape == (1, 80, 3000)
    loudest = int(sound[0, :, 50].argmax())
    assert loudest == int(whisper.mel_filters()[:, 25].argmax())  # 1000 Hz is bin 25 of 40 Hz
    assert float(sound[0, loudest, 50] - sound[0, :, 2000].max()) == pytest.approx(2, abs=1e-5)


def test_a_ctranslate2_file_is_read_by_its_layout():
    def word(text):
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    weight = np.arange(6, dtype=np.float16).reshape(2, 3)
    file = struct.pack("<I", 6) + word("WhisperSpec") + struct.pack("<II", 3, 2)
    file += word("a/weight") + struct.pack("<B2IBI", 2, 2, 3, 4, 12) + weight.tobytes()
    file += word("count") + struct.pack("<BBI", 0, 3, 4) + struct.pack("<i", -7)
    found = dict(whisper.variables(io.BytesIO(file)))
    assert torch.equal(found["a/weight"], torch.arange(6.0).reshape(2, 3).half())
    assert int(found["count"]) == -7
    with pytest.raises(ValueError, match="version 5"):
        whisper.variables(io.BytesIO(struct.pack("<I", 5) + file[4:]))


def test_wav_files_are_read_at_16_khz(tmp_path):
    file = tmp_path / "tone.wav"
    t = np.arange(48_000) / 48_000
    tone = (2**14 * np.sin(2 * np.pi * 440 * t)).astype("<i2")
    with wave.open(str(file), "wb") as wav:
        wav.setnchannels(2)
        wav.setsampwidth(2)
        wav.setframerate(48_000)
        wav.writeframes(np.stack([tone, tone], 1).tobytes())
    got = whisper.sound(file)
    expected = 0.5 * torch.sin(2 * torch.pi * 440 * torch.arange(16_000).double() / 16_000)
    assert got.shape == (16_000,)
    assert float((got - expected)[200:-200].abs().max()) < 1e-3


def test_smollm2_completes_known_sentences_and_code():
    place = need("smollm2", "gguf", "tokenizers")
    model, tokenizer = smollm2.load(place), smollm2.tokenizer(place)
    for said, then in (
        ("The capital of France is", " Paris"),
        ("Once upon a", " time"),
        ("import numpy as", " np"),
    ):
        ids = torch.tensor([tokenizer.encode(said).ids])
        assert tokenizer.decode([int(model(ids)[0, -1].argmax())]) == then
    text = Path(os.__file__).read_text(encoding="utf-8")[:3000]
    ids = smollm2.tokens(place, text)
    assert tokenizer.decode(ids[0].tolist()) == text
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    assert model.perplexity(ids) < 20
    assert model.perplexity(shuffled) > 1000


def test_whisper_hears_what_is_said():
    """In the recordings of Debian's package alsa-utils, or of a folder in SOFTLAB_SOUNDS."""
    place = need("whisper", "tokenizers")
    sounds = Path(os.environ.get("SOFTLAB_SOUNDS", "/usr/share/sounds/alsa"))
    if not (sounds / "Front_Center.wav").exists():
        pytest.skip("needs speech: apt-get install alsa-utils, or its folder in SOFTLAB_SOUNDS")
    model = whisper.load(place)
    for name in ("Front_Center", "Side_Left"):
        memory = model(whisper.spectrogram(whisper.sound(sounds / f"{name}.wav")))
        heard = whisper.words(place, model.transcribed(memory))
        assert "".join(c for c in heard.lower() if c.isalpha()) == name.lower().replace("_", "")
