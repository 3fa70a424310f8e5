"""Loss and output error against size right after a cut of two pretrained networks for speech.

Both ship their weights inside a package of PyPI and are rebuilt here from them: the voice-activity
network of ``silero-vad`` (Fourier layer, four convolutions, an LSTM) and the speaker encoder of
``Resemblyzer`` (three LSTMs, a linear layer). The speech is the recorded prompts of Debian's
``asterisk-core-sounds-*-g722`` packages: 16 kHz, four people, a language each. Noise, pauses and
levels are made here. Half of the clips are for the cut, the other half to judge it on.

Fetch them once, into any folder::

    pip download --no-deps silero-vad==6.2.3 Resemblyzer==0.1.4   # and unzip both wheels
    apt-get download asterisk-core-sounds-{en,fr,it,ru}-g722      # and dpkg -x each into speech/
    pip install --no-deps av                                      # decodes G.722

The voice-activity score is the cross-entropy with what was mixed in, per window of 32 ms. The
speaker encoder's is that of each utterance with the centroids of the four people in its batch.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from _cuts import Case, compare

RATE = 16_000
BATCHES, HELD_OUT_BATCHES, DRAWS = 6, 4, 3
ENCODER_BATCHES = 3  # of 20 utterances with 160 steps each
WINDOW, CONTEXT = 512, 64  # samples that the voice-activity network reads, and looks back
WINDOWS, SCENES = 96, 12
FRAMES, MELS, UTTERANCES = 160, 40, 5  # of one utterance of the speaker encoder; of one person

WHAT = "on held-out speech above dense, error of outputs, share stored"

Clips = Sequence[Sequence[np.ndarray]]
Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


class VoiceActivity(nn.Module):
    """``(batch, samples)`` at 16 kHz to ``(batch, samples / 512)``: logits of speech."""

    def __init__(self, weights: Mapping[str, Tensor], prefix: str = "_model.") -> None:
        super().__init__()
        self.fourier = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm = nn.LSTM(128, 128, batch_first=True)
        self.final = nn.Conv1d(128, 1, 1)
        own = {}
        for name, value in weights.items():
            if name.startswith(prefix):
                own[_renamed(name.removeprefix(prefix))] = value
        self.load_state_dict(own)

    def forward(self, wave: Tensor) -> Tensor:
        """Logits of all windows, each seen after those before it."""
        batch = len(wave)
        windows = F.pad(wave, (CONTEXT, 0)).unfold(1, WINDOW + CONTEXT, WINDOW).flatten(0, 1)
        spectrum = self.fourier(F.pad(windows, (0, 64), mode="reflect").unsqueeze(1))
        real, imaginary = spectrum.chunk(2, 1)
        x = (real.square() + imaginary.square()).clamp(min=1e-12).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()
        y, _ = self.lstm(x.view(batch, -1, 128))
        return self.final(y.relu().mT).squeeze(1)


def _renamed(name: str) -> str:
    """``encoder.0.reparam_conv.bias`` of the packaged network is ``conv1.bias`` here."""
    parts = name.split(".")
    if parts[0] == "stft":
        return "fourier.weight"
    if parts[0] == "encoder":
        return f"conv{int(parts[1]) + 1}.{parts[-1]}"
    return f"lstm.{parts[-1]}_l0" if parts[1] == "rnn" else f"final.{parts[-1]}"


class SpeakerEncoder(nn.Module):
    """``(batch, frames, 40)`` mel energies to ``(batch, 256)`` vectors of length one."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.lstm = nn.LSTM(MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        self.load_state_dict({n: v for n, v in weights.items() if not n.startswith("similarity")})

    def forward(self, mels: Tensor) -> Tensor:
        """What the last step of the last LSTM says."""
        _, (hidden, _) = self.lstm(mels)
        return F.normalize(self.linear(hidden[-1]).relu(), dim=1)


def spoken(folder: Path) -> dict[str, list[np.ndarray]]:
    """Clips of at least two seconds by speaker, as float32 from -1 to 1."""
    import av

    clips: dict[str, list[np.ndarray]] = {}
    for path in sorted(folder.rglob("*.g722")):
        if path.parent.name == "silence" or path.stat().st_size < RATE:  # 8,000 bytes a second
            continue
        with av.open(str(path), format="g722") as file:
            parts = [frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)]
        speaker = path.relative_to(folder).parts[path.relative_to(folder).parts.index("sounds") + 1]
        clips.setdefault(speaker, []).append(np.concatenate(parts).astype(np.float32) / 2**15)
    return clips


def mel_filters() -> np.ndarray:
    """``(40, 201)`` triangles on Slaney's scale, each of unit area: as librosa's default."""

    def hertz(mel: np.ndarray) -> np.ndarray:
        linear = mel * 200 / 3
        return np.where(mel < 15, linear, 1000 * np.exp((mel - 15) * math.log(6.4) / 27))

    top = 15 + 27 * math.log(RATE / 2 / 1000) / math.log(6.4)
    edges = hertz(np.linspace(0, top, MELS + 2))
    bins = np.linspace(0, RATE / 2, 201)
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    area = 2 / (edges[2:] - edges[:-2])
    return np.maximum(0, np.minimum(rising, falling)) * area[:, None]


def mels_of(wave: np.ndarray, filters: Tensor) -> Tensor:
    """``(160, 40)`` mel energies of 1.6 s: windows of 25 ms every 10 ms; raised to -30 dBFS."""
    power = 10 * math.log10(max(float((wave**2).mean()), 1e-12))
    signal = torch.from_numpy(wave * 10 ** (max(0.0, -30 - power) / 20))
    spectrum = torch.stft(
        signal, 400, 160, window=torch.hann_window(400), pad_mode="constant", return_complex=True
    )
    return (filters @ spectrum.abs().square()).mT[:FRAMES]


def utterances(clips: Clips, random: np.random.Generator, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Five utterances of each person, and who spoke."""
    length = FRAMES * RATE // 100
    rows = []
    for person in clips:
        for _ in range(UTTERANCES):
            clip = person[random.integers(len(person))]
            start = random.integers(len(clip) - length)
            rows.append(mels_of(clip[start : start + length], filters))
    return torch.stack(rows), torch.arange(len(clips)).repeat_interleave(UTTERANCES)


def scenes(clips: Clips, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """``(12, samples)`` of speech with pauses in noise, and where speech is, per window."""
    waves, labels = [], []
    for _ in range(SCENES):
        clean = np.zeros(WINDOWS * WINDOW, np.float32)
        place = int(random.integers(RATE))
        while place < len(clean):
            person = clips[random.integers(len(clips))]
            clip = person[random.integers(len(person))][: len(clean) - place]
            clean[place : place + len(clip)] = clip / (np.abs(clip).max() + 1e-6)
            place += len(clip) + int(random.integers(RATE // 2, 2 * RATE))
        energy = (clean.reshape(WINDOWS, WINDOW) ** 2).mean(1)
        speech = energy > 1e-4
        noise = np.cumsum(random.standard_normal(len(clean) + 64)).astype(np.float32)
        noise = noise[64:] - noise[:-64]  # a slope towards low tones
        ratio = 10 ** (-random.uniform(5, 25) / 20)
        loud = math.sqrt(float(energy[speech].mean())) if speech.any() else 0.1
        level = random.uniform(0.1, 0.9)
        waves.append(torch.from_numpy(level * (clean + noise * ratio * loud / noise.std())))
        labels.append(torch.from_numpy(speech))
    return torch.stack(waves).float(), torch.stack(labels).float()


def detection_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of each window's speech, in nats."""
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def speaker_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of who spoke, by ten times the cosine with each person's mean in the batch."""
    vectors, who = model(batch[0]), batch[1]
    people = vectors.view(-1, UTTERANCES, vectors.shape[1])
    totals = people.sum(1)
    own = F.normalize(totals[:, None] - people, dim=-1)  # without the utterance itself
    scores = vectors @ F.normalize(totals, dim=-1).mT
    mine = (people * own).sum(-1).flatten()
    scores = scores.scatter(1, who[:, None], mine[:, None])
    return F.cross_entropy(10 * scores, who)


def far_from_packaged(
    model: VoiceActivity, packaged: torch.jit.ScriptModule, wave: Tensor
) -> float:
    """The largest difference of probabilities from the TorchScript network of the package."""
    with torch.no_grad():
        theirs = [packaged(chunk, RATE) for chunk in wave.split(WINDOW, 1)]
        return float((torch.cat(theirs, 1) - model(wave).sigmoid()).abs().max())


def mean(loss: Loss, batches: Sequence[tuple[Tensor, Tensor]]) -> Callable[[nn.Module], float]:
    """The score of a model: its mean loss over batches."""

    def score(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(loss(model, batch)) for batch in batches) / len(batches)

    return score


def voice_activity(packages: Path, train: Clips, other: Clips) -> None:
    packaged = torch.jit.load(str(packages / "silero_vad/data/silero_vad.jit")).eval()
    voice = VoiceActivity(packaged.state_dict()).eval()
    *randoms, last = [np.random.default_rng(seed) for seed in range(DRAWS + 1)]
    held_out = [scenes(other, last) for _ in range(HELD_OUT_BATCHES)]
    difference = far_from_packaged(voice, packaged, held_out[0][0])
    print(f"largest difference from the packaged network's probabilities: {difference:.2g}")
    cases = [
        Case(f"draw {i}", voice, [scenes(train, random) for _ in range(BATCHES)], held_out,
             detection_loss, mean(detection_loss, held_out))
        for i, random in enumerate(randoms)
    ]  # fmt: skip
    # The Fourier layer is no learned weight; a thin weight is as good as any other here.
    settings = {"also": ["lstm"], "skip": ["fourier"], "max_aspect": math.inf}
    compare(f"silero-vad: cross-entropy of speech in nats {WHAT}", cases, settings=settings)


def speakers(packages: Path, train: Clips, other: Clips) -> None:
    file = packages / "resemblyzer/pretrained.pt"
    state = torch.load(file, map_location="cpu", weights_only=True)["model_state"]
    encoder, filters = SpeakerEncoder(state).eval(), torch.from_numpy(mel_filters()).float()
    *randoms, last = [np.random.default_rng(seed) for seed in range(DRAWS + 1)]
    held_out = [utterances(other, last, filters) for _ in range(HELD_OUT_BATCHES)]
    cases = [
        Case(f"draw {i}", encoder,
             [utterances(train, random, filters) for _ in range(ENCODER_BATCHES)],
             held_out, speaker_loss, mean(speaker_loss, held_out))
        for i, random in enumerate(randoms)
    ]  # fmt: skip
    settings = {"also": ["lstm"], "max_aspect": math.inf}
    compare(f"Resemblyzer: cross-entropy of who spoke in nats {WHAT}", cases, settings=settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", type=Path, help="folder with the two unpacked wheels")
    parser.add_argument("speech", type=Path, help="folder with the unpacked Debian packages")
    parser.add_argument("--network", choices=("both", "silero", "resemblyzer"), default="both")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    clips = spoken(arguments.speech)
    print({name: len(person) for name, person in clips.items()}, "clips by speaker")
    train, other = ([person[i::2] for person in clips.values()] for i in (0, 1))
    if arguments.network != "resemblyzer":
        voice_activity(arguments.packages, train, other)
    if arguments.network != "silero":
        speakers(arguments.packages, train, other)


if __name__ == "__main__":
    main()
