"""A text classifier from training to a file of 4 bits: an embedding and an LSTM over requests of a shop's customers.

The requests come from a small grammar. What is wanted (one of 4 actions on one of 3 things, each in several words)
stands beside what is not wanted or was done before, names, greetings, and words that are missing or misspelt, so that
only the order of the words tells the 12 classes apart. Needs torch; takes a minute.

Writes requests.onnx, a card with samples, and the quantized files into a folder, `requests` if no other is given.

python samples/05_text_classifier.py
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import onnx_cbq
from onnx_cbq import CalibrationSet, QuantizeConfig

LENGTH, EMBEDDING, HIDDEN = 32, 64, 96
PAD, UNKNOWN = 0, 1
CALIBRATION, TEST = 500, 6000
ACTIONS = {
    "cancel": ("cancel", "stop", "call off", "end", "revoke", "get rid of"),
    "change": ("change", "move", "modify", "update", "correct", "reschedule"),
    "pay": ("pay", "pay for", "settle", "transfer the money for", "clear the bill of"),
    "find": ("find", "see", "look up", "check", "get news about", "know more about"),
}
THINGS = {
    "order": ("order", "parcel", "purchase", "delivery", "shipment"),
    "plan": ("plan", "subscription", "membership", "contract"),
    "visit": ("visit", "appointment", "booking", "meeting", "reservation"),
}
CLASSES = tuple(f"{action} {thing}" for action in ACTIONS for thing in THINGS)
WANTED = (
    *("please {do} my {thing}", "i want to {do} the {thing} of the {product}", "can you {do} my {thing} in {town}"),
    *("how do i {do} the {thing} for {name}", "i have to {do} my {thing}", "{name} said you {do} a {thing} here"),
    *("it is time to {do} that {thing}", "help me {do} the {thing} with {name} , would you"),
)
UNWANTED = (
    *("i do not want to {do} my {thing}", "{name} did {do} the {thing} last week", "nobody asked to {do} the {thing}"),
    *("i did not ask {name} to {do} a {thing}", "yesterday i had to {do} a {thing} in {town}"),
    *("it is too late to {do} the {thing} of the {product}", "last time you did {do} my {thing}"),
)
ASIDES = (
    *("hello", "hi {name} here", "good morning from {town}", "thanks", "this is about the {product}", "kind regards"),
    *("i live in {town} with {name}", "{name} and {name} like the {product}", "sorry for the trouble"),
)
# Share of words that are missing, misspelt, or another word; and of those that training takes for unknown.
NOISE, FORGOTTEN = 0.06, 0.03


def make_names(rng: np.random.Generator, count: int, endings: Sequence[str]) -> list[str]:
    """Names of people, towns and products, which say nothing about the class."""
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "el", "or")]
    return ["".join(rng.choice(syllables, 2)) + str(rng.choice(endings)) for _ in range(count)]


class Grammar:
    """Requests by chance, from a seed."""

    def __init__(self, seed: int) -> None:
        names = np.random.default_rng(0)  # the same people write in training and later
        self.slots: Mapping[str, Sequence[str]] = {
            "name": make_names(names, 1200, ("a", "o", "us", "ine")),
            "town": make_names(names, 700, ("ville", "burg", "ton", "stad")),
            "product": make_names(names, 900, ("ex", "phone", "matic", "ware")),
        }
        self.rng = np.random.default_rng(seed)

    def pick(self, choices: Sequence[str]) -> str:
        """One of them."""
        return choices[int(self.rng.integers(len(choices)))]

    def clause(self, templates: Sequence[str], label: int) -> str:
        """A clause about a class."""
        action, thing = CLASSES[label].split()
        words = {slot: self.pick(choices) for slot, choices in self.slots.items()}
        return self.pick(templates).format(do=self.pick(ACTIONS[action]), thing=self.pick(THINGS[thing]), **words)

    def noisy(self, text: str) -> list[str]:
        """The words, some of which are missing, misspelt, or another word of the same request."""
        words, found = text.split(), []
        for word in words:
            kind, place = self.rng.random() / NOISE, int(self.rng.integers(len(word)))
            if kind >= 1:
                found.append(word)
            elif kind >= 2 / 3:
                found.append(self.pick(words))
            elif kind >= 1 / 3:
                found.append(word[:place] + word[place + 1 :])
        return found

    def request(self) -> tuple[list[str], int]:
        """The words of a request, and its class."""
        label, other = (int(number) for number in self.rng.integers(len(CLASSES), size=2))
        clauses = [self.clause(WANTED, label), self.clause(UNWANTED, other)]
        if self.rng.random() < 0.5:
            clauses.reverse()
        if self.rng.random() < 0.6:
            clauses.insert(int(self.rng.integers(3)), self.clause(ASIDES, label))
        return self.noisy(self.pick((" . ", " , ", " and ", " but ")).join(clauses)), label

    def requests(self, count: int) -> tuple[list[list[str]], np.ndarray]:
        """So many requests and their classes."""
        texts, labels = zip(*(self.request() for _ in range(count)), strict=True)
        return list(texts), np.array(labels)


def number_words(texts: Sequence[Sequence[str]]) -> dict[str, int]:
    """Words that occur at least twice, with their numbers behind PAD and UNKNOWN."""
    counts = Counter(word for words in texts for word in words)
    known = [word for word, count in counts.most_common() if count > 1]
    return {word: number for number, word in enumerate(known, UNKNOWN + 1)}


def encode(texts: Sequence[Sequence[str]], numbers: Mapping[str, int]) -> np.ndarray:
    """Numbers of the words, int64 [n, LENGTH], with PAD behind the last."""
    rows = np.full((len(texts), LENGTH), PAD)
    for row, words in zip(rows, texts, strict=True):
        known = [numbers.get(word, UNKNOWN) for word in words[:LENGTH]]
        row[: len(known)] = known
    return rows


class Classifier(nn.Module):
    """An embedding, an LSTM in both directions, the greatest of its states over time, a linear layer."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, EMBEDDING)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * HIDDEN, len(CLASSES))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Word numbers [N, LENGTH] -> class scores [N, 12]."""
        states, _ = self.lstm(self.embedding(ids))
        scores: torch.Tensor = self.head(states.amax(dim=1))
        return scores


def train(net: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """Adam with one cycle of its rate; some words are taken for unknown ones, which later requests have too."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=epochs * len(x.split(64)))
    for epoch in range(epochs):
        losses = []
        for indices in torch.randperm(len(x)).split(64):
            ids = x[indices]
            ids = torch.where((torch.rand(ids.shape) < FORGOTTEN) & (ids != PAD), UNKNOWN, ids)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(ids), y[indices])
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"epoch {epoch + 1} of {epochs}: loss {np.mean(losses):.3f}")
    net.eval()


def export(net: nn.Module, example: torch.Tensor, path: Path) -> None:
    """Write the net for batches of any size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of another exporter, and of batches, which the scores of `compare` come from
        torch.onnx.export(
            net,
            (example,),
            path,
            dynamo=False,
            opset_version=17,
            input_names=["ids"],
            output_names=["scores"],
            dynamic_axes={"ids": {0: "N"}, "scores": {0: "N"}},
        )


def save_samples(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    """What a card takes: samples, labels, names."""
    np.savez(path, x=x, y=y, class_names=np.array(CLASSES))


def make(folder: Path, count: int, epochs: int) -> None:
    """Train on so many requests; write the model, a card with some of them, and others that it has not seen."""
    texts, labels = Grammar(seed=1).requests(count)
    numbers = number_words(texts)
    x = encode(texts, numbers)
    torch.manual_seed(0)
    net = Classifier(len(numbers) + 2)
    print(f"{count:,} requests, {len(numbers):,} words, {sum(p.numel() for p in net.parameters()):,} weights")
    print(f"the first: {' '.join(texts[0])}: {CLASSES[labels[0]]}")
    train(net, torch.tensor(x), torch.tensor(labels), epochs)
    folder.mkdir(parents=True, exist_ok=True)
    export(net, torch.tensor(x[:1]), folder / "requests.onnx")
    save_samples(folder / "some_of_training.npz", x[:CALIBRATION], labels[:CALIBRATION])
    texts, labels = Grammar(seed=2).requests(TEST)
    save_samples(folder / "unseen.npz", encode(texts, numbers), labels)
    (folder / "requests.toml").write_text('source = "some_of_training.npz"\n')


def compare(folder: Path, widths: Sequence[float]) -> None:
    """Quantize at each average of bits, and print what it costs on requests that no step has seen."""
    model, card = folder / "requests.onnx", folder / "requests.toml"
    unseen = CalibrationSet.from_card(card, source=folder / "unseen.npz")
    before = onnx_cbq.evaluate(model, unseen).model
    print(f"\n{'':8}{'bytes':>12}{'of float':>10}{'right, %':>10}{'change':>8}{'same prediction, %':>20}")
    print(f"{'float':8}{before.bytes:12,}{'':10}{before.top1:10.2f}")
    for bits in widths:
        result = onnx_cbq.quantize(model, card, QuantizeConfig(bits=bits, storage="packed"))
        path = folder / f"requests_{bits:g}_bits.onnx"
        size = result.save(path)
        found = onnx_cbq.evaluate(path, unseen, reference=model)
        change = found.model.top1 - before.top1
        print(
            f"{f'{bits:g} bits':8}{size:12,}{size / before.bytes:10.3f}{found.model.top1:10.2f}{change:+8.2f}"
            f"{found.agreement:20.2f}"
        )
    print(f"right of {TEST:,} requests that neither training nor quantizing has seen; files are in {folder}")
    print(f"from a shell: onnx-cbq quantize {model} --data {card} --bits 4 --storage packed")


def main() -> None:
    """Train, export, quantize, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("requests"), help="where files go (requests)")
    parser.add_argument("--requests", type=int, default=8000, help="that it is trained on (8000)")
    parser.add_argument("--epochs", type=int, default=4, help="rounds of training (4)")
    parser.add_argument("--bits", type=float, nargs="+", default=[4, 3, 2], help="averages of bits per weight (4 3 2)")
    given = parser.parse_args()
    make(given.folder, given.requests, given.epochs)
    compare(given.folder, given.bits)


if __name__ == "__main__":
    main()
