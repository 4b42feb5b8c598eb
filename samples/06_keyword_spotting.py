"""Keyword spotting from WAV files to a quantized model: spoken words, a net on the waveform, a card that is measured.

A small synthesiser speaks ten words, each time with another voice, pitch, pace, loudness, pause and background noise,
into a folder for each word: 16-bit WAV at 16,000 numbers a second, each as long as it happens to be. The net takes a
second at 8,000, normalised, and makes a log-mel spectrogram of it with convolutions. None of that stands in its file:
`onnx-cbq card` finds it. Needs torch and soundfile (`pip install 'onnx-cbq[torch,audio]'`); takes two minutes.

Writes everything into a folder, `words` if no other is given, and prints the commands that it runs.

python samples/06_keyword_spotting.py
"""

import argparse
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from scipy.ndimage import gaussian_filter1d
from scipy.signal import istft, resample_poly, stft
from torch import nn

# Of the files; of the net.
FILE_RATE, RATE, LENGTH = 16_000, 8000, 8000
WINDOW, HOP = 256, 64


@dataclass(frozen=True)
class Sound:
    """What a mouth does for so many milliseconds.

    Attributes:
        formants: resonances in hertz.
        voice, noise: how loud each is.
        centre, width: of the noise, in hertz.
    """

    ms: int
    formants: tuple[int, int, int] = (500, 1500, 2500)
    voice: float = 0.0
    noise: float = 0.0
    centre: int = 3000
    width: int = 1500


SOUNDS = {
    "a": Sound(150, (730, 1090, 2440), 1.0),
    "e": Sound(130, (550, 1770, 2490), 1.0),
    "i": Sound(110, (280, 2250, 2890), 0.9),
    "o": Sound(150, (570, 840, 2410), 1.0),
    "u": Sound(110, (300, 870, 2240), 0.8),
    "y": Sound(70, (260, 2200, 3000), 0.6),
    "l": Sound(80, (360, 1000, 2700), 0.6),
    "r": Sound(80, (420, 1200, 1600), 0.6),
    "n": Sound(90, (250, 1400, 2200), 0.4),
    "s": Sound(130, noise=0.5, centre=5000, width=1800),
    "f": Sound(110, noise=0.2, centre=3000, width=3000),
    "-": Sound(50),
    "t": Sound(40, noise=0.7, centre=3600, width=1200),
    "p": Sound(40, noise=0.5, centre=900, width=700),
    "d": Sound(40, (300, 1700, 2600), 0.4, 0.3, 3200, 1200),
    "g": Sound(40, (300, 1600, 2300), 0.4, 0.3, 1900, 700),
}
WORDS = {
    "yes": "yes", "no": "nou", "up": "a-p", "down": "daun", "left": "lef-t", "right": "rai-t", "on": "on", "off": "of",
    "stop": "s-ta-p", "go": "gou",
}  # fmt: skip


def say(word: str, rng: np.random.Generator) -> np.ndarray:
    """A word as somebody may say it, at FILE_RATE: pulses and noise, shaped by the resonances of each moment."""
    pace, tract, pitch = rng.uniform(0.75, 1.35), rng.uniform(0.85, 1.2), rng.uniform(90, 240)
    rows, frames = [], []
    for one in (SOUNDS[letter] for letter in WORDS[word]):
        formants = tract * np.array(one.formants) * rng.uniform(0.9, 1.1, 3)
        rows.append([*formants, one.voice, one.noise, one.centre, one.width])
        frames.append(max(round(one.ms / 1000 * pace * rng.uniform(0.8, 1.25) * FILE_RATE / HOP), 2))
    # [frames] each; a mouth takes a while from one sound to the next.
    path = gaussian_filter1d(np.repeat(rows, frames, axis=0), 2.0, axis=0, mode="nearest")
    *formants, voice, noise, centre, width = path.T
    count = len(path) * HOP
    melody = pitch * np.linspace(1, rng.uniform(0.75, 1.1), count)
    pulses = np.diff(np.floor(np.cumsum(melody) / FILE_RATE), prepend=0)
    hertz = np.fft.rfftfreq(WINDOW, 1 / FILE_RATE)[:, None]
    resonances = zip(formants, (1, 0.5, 0.3), (70, 90, 130), strict=True)
    throat = voice * sum(gain / (1 + ((hertz - formant) / band) ** 2) for formant, gain, band in resonances)
    teeth = 0.05 * noise * np.exp(-(((hertz - centre) / width) ** 2))
    overlap = WINDOW - HOP
    spectrum = sum(
        shape * stft(source, nperseg=WINDOW, noverlap=overlap)[2][:, : len(path)]
        for shape, source in ((throat, pulses), (teeth, rng.normal(size=count)))
    )
    spoken = istft(spectrum, noverlap=overlap)[1]
    return np.asarray(spoken / spoken.std())


def record(word: str, rng: np.random.Generator) -> np.ndarray:
    """A word with a pause and background noise around it, louder or softer, as int16."""
    whole = np.pad(say(word, rng), [int(pause * FILE_RATE) for pause in rng.uniform(0.05, 0.3, 2)])
    hiss = rng.normal(size=len(whole))
    hiss += rng.uniform(0, 8) * gaussian_filter1d(hiss, 8.0)
    whole += hiss / hiss.std() * 10 ** rng.uniform(-1.2, 0.35)
    loudness = 10 ** rng.uniform(-2.5, -0.9)
    return np.clip(np.rint(32767 * loudness * whole), -32768, 32767).astype(np.int16)


def write_words(folder: Path, each: int, seed: int) -> None:
    """So many files of each word, in a folder for each."""
    rng = np.random.default_rng(seed)
    for word in WORDS:
        (folder / word).mkdir(parents=True, exist_ok=True)
        for old in (folder / word).glob("*.wav"):  # of a run before this one
            old.unlink()
        for number in range(each):
            wavfile.write(folder / word / f"{number:04}.wav", FILE_RATE, record(word, rng))


def prepare(path: Path) -> np.ndarray:
    """What the net takes of a file: RATE, LENGTH numbers, mean 0 and deviation 1."""
    values = resample_poly(wavfile.read(path)[1].astype(np.float32) / 32768, RATE, FILE_RATE)[:LENGTH]
    values = np.pad(values, (0, LENGTH - len(values)))
    return np.asarray((values - values.mean()) / values.std())


def load_words(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All files of a folder, float32 [n, 1, LENGTH], and the numbers of their words in alphabetical order, [n]."""
    files = sorted(folder.glob("*/*.wav"))
    names = sorted(WORDS)
    x = np.stack([prepare(file) for file in files]).astype(np.float32)
    return torch.tensor(x[:, None]), torch.tensor([names.index(file.parent.name) for file in files])


class Spotter(nn.Module):
    """A log-mel spectrogram made by convolutions, three more of them, a mean over time, a linear layer."""

    def __init__(self, window: int = 200, hop: int = 80, bands: int = 32) -> None:
        super().__init__()
        hertz = np.arange(window // 2 + 1) * RATE / window
        angles = 2 * np.pi * np.outer(hertz / RATE, np.arange(window))
        fourier = np.concatenate([np.cos(angles), np.sin(angles)]) * np.hanning(window) / np.sqrt(window)
        mel = 2595 * np.log10(1 + hertz / 700)
        centres = np.linspace(mel[1], mel[-1], bands + 2)[1:-1, None]
        triangles = np.maximum(1 - np.abs(mel - centres) / (centres[1] - centres[0]), 0)
        self.fourier = nn.Conv1d(1, len(fourier), window, hop, bias=False)
        self.mel = nn.Conv1d(len(fourier), bands, 1, bias=False)
        self.fourier.weight.data = torch.tensor(fourier[:, None], dtype=torch.float32)
        self.mel.weight.data = torch.tensor(np.tile(triangles, 2)[..., None], dtype=torch.float32)
        self.layers = nn.Sequential(
            nn.BatchNorm1d(bands),
            *(nn.Conv1d(bands, 64, 5, 2), nn.BatchNorm1d(64), nn.ReLU()),
            *(nn.Conv1d(64, 96, 5, 2), nn.BatchNorm1d(96), nn.ReLU()),
            *(nn.Conv1d(96, 96, 5), nn.BatchNorm1d(96), nn.ReLU()),
            *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(96, len(WORDS))),
        )

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        """Sounds [N, 1, LENGTH] -> class scores [N, 10]."""
        scores: torch.Tensor = self.layers(torch.log(self.mel(self.fourier(sound) ** 2) + 1e-3))
        return scores


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Adam with one cycle of its rate; the spectrogram stays what it is."""
    learned = [parameter for name, parameter in net.named_parameters() if name.startswith("layers")]
    optimizer = torch.optim.Adam(learned, 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * len(x.split(50)))
    for epoch in range(epochs):
        losses = []
        for indices in torch.randperm(len(x)).split(50):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x[indices]), y[indices])
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}")
    net.eval()


def make(folder: Path, each: int, unseen: int, epochs: int) -> None:
    """Speak, train and export."""
    write_words(folder / "spoken", each, seed=1)
    write_words(folder / "unseen", unseen, seed=2)
    x, y = load_words(folder / "spoken")
    print(f"{len(x):,} files to learn from, {unseen * len(WORDS):,} others to evaluate")
    torch.manual_seed(0)
    net = Spotter()
    train(net, x, y, epochs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of another exporter
        torch.onnx.export(
            net,
            (x[:1],),
            folder / "words.onnx",
            dynamo=False,
            opset_version=17,
            input_names=["sound"],
            output_names=["scores"],
            dynamic_axes={"sound": {0: "N"}, "scores": {0: "N"}},
        )


def run(*words: str | Path) -> None:
    """Print a command of onnx-cbq, and run it; if it fails, so does this script."""
    print("\n$", "onnx-cbq", *words, flush=True)
    subprocess.run([sys.executable, "-m", "onnx_cbq", *map(str, words)], check=True)  # noqa: S603, words of this file


def main() -> None:
    """Speak, train, export; then from the files to the result as from a shell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("words"), help="where files go (words)")
    parser.add_argument("--each", type=int, default=240, help="files of each word to learn from (240)")
    parser.add_argument("--unseen", type=int, default=300, help="others of each word to evaluate (300)")
    parser.add_argument("--epochs", type=int, default=10, help="rounds of training (10)")
    given = parser.parse_args()
    folder = given.folder
    make(folder, given.each, given.unseen, given.epochs)
    model, card, small = folder / "words.onnx", folder / "card.toml", folder / "words_4_bits.onnx"
    run("card", model, "--source", folder / "spoken", "--output", card, "--overwrite")
    run("quantize", model, "--data", card, "--samples", "500", "--bits", "4", "--storage", "packed", "--output", small)
    run("evaluate", small, "--data", card, "--source", folder / "unseen", "--reference", model)


if __name__ == "__main__":
    main()
