"""An archive restores to the same bytes, is small, and nothing that is wrong with one does any harm."""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc
import zlib
from base64 import b85decode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnx_cbq import (
    Archive,
    ArchiveError,
    ConfigError,
    DataFreeConfig,
    ModelError,
    OutputError,
    archive,
    quantize_without_data,
    restore,
)
from onnx_cbq.emit.coding.container import largest_file, pack, unpack, write_varints
from tests.conftest import DIGITS_MODEL
from tests.emit.quantized import Weight, codes_on_grid, model_of

CODERS = ("ans", "huffman")
SEED = 20


def small_model(seed: int = SEED) -> onnx.ModelProto:
    """A layer of each kind: kernels and none, channels on either axis, all widths, zeros."""
    generator = np.random.default_rng(seed)
    widths = (0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 3)
    kernels = codes_on_grid(generator, (12, 5, 3, 3), 0, widths, rise=True)
    flat = codes_on_grid(generator, (20, 12), 1, widths, rise=False)
    scale = generator.random(12, np.float32)
    weights = {"conv": Weight(kernels, widths), "fc": Weight(flat, widths, "Gemm")}
    constants = {
        "scale": scale,
        "input": np.array(0.123, np.float32),
        "product": scale * np.float32(0.123),
        "bias": generator.integers(-5000, 5000, 12).astype(np.int32),
        "zero": np.zeros(12, np.int8),
        "table": generator.integers(-3, 4, (4, 5)).astype(np.int8),
    }
    return model_of(weights, constants)


SMALL = archive(small_model()).content


def sealed(body: bytes) -> bytes:
    """An archive with the right checksum, whatever is in it."""
    return body + zlib.crc32(body).to_bytes(4, "little")


@pytest.mark.parametrize("coder", CODERS)
def test_the_same_bytes_come_back(coder: str, tmp_path: Path) -> None:
    model = small_model()
    onnx.save(model, tmp_path / "m.onnx")
    made = archive(tmp_path / "m.onnx", coder)
    assert made.save(tmp_path / "m.cbqz") == (tmp_path / "m.cbqz").stat().st_size
    original = (tmp_path / "m.onnx").read_bytes()
    assert restore(tmp_path / "m.cbqz") == original
    assert restore(made.content) == original
    assert archive(model, coder).content == made.content


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("scheme", DataFreeConfig.SCHEMES)
def test_every_scheme_comes_back_smaller_than_its_frequencies(scheme: str, coder: str) -> None:
    """Also codes that are positions in a table, and those that have a zero point."""
    proto = quantize_without_data(DIGITS_MODEL, DataFreeConfig(4, scheme)).model.to_proto()
    made = archive(proto, coder)
    assert restore(made.content) == proto.SerializeToString()
    assert made.code_bytes < made.ideal_bytes * (1.01 if coder == "ans" else 1.06)


@pytest.mark.parametrize("bits", range(2, 9))
def test_codes_take_less_than_with_zstandard(bits: int) -> None:
    proto = quantize_without_data(DIGITS_MODEL, DataFreeConfig(bits)).model.to_proto()
    made = archive(proto)
    tensors = [numpy_helper.to_array(t) for t in proto.graph.initializer]
    codes = b"".join(t.tobytes() for t in tensors if t.dtype == np.int8 and t.ndim > 1)
    assert len(codes) == made.weights
    assert made.code_bytes + made.parameter_bytes < len(zstandard.compress(codes, 22))
    assert len(made.content) < len(zstandard.compress(proto.SerializeToString(), 22))


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
def test_any_weight_comes_back(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=5)))
    axis = data.draw(st.integers(0, 1))
    bits = tuple(data.draw(st.lists(st.integers(0, 8), min_size=shape[axis], max_size=shape[axis])))
    generator = np.random.default_rng(data.draw(st.integers(0, 1000)))
    kind = data.draw(st.sampled_from(["rise", "tread", "int8", "uint8"]))
    if kind in ("rise", "tread"):
        codes = codes_on_grid(generator, shape, axis, bits, rise=kind == "rise")
    else:
        codes = generator.integers(*((-128, 128) if kind == "int8" else (0, 256)), shape).astype(kind)
    model = model_of({"w": Weight(codes, bits)})
    for coder in CODERS:
        assert restore(archive(model, coder).content) == model.SerializeToString()


def test_figures_add_up() -> None:
    made = archive(small_model())
    assert made.model_bytes == len(small_model().SerializeToString())
    parts = made.frame_bytes + made.parameter_bytes + made.number_bytes + made.code_bytes
    assert 0 < len(made.content) - parts < 70
    assert made.weights == 12 * 45 + 240
    figures = json.loads(made.to_json())
    assert figures["archive_bytes"] == len(made.content)
    assert figures["ideal_bytes"] == pytest.approx(figures["entropy"] * made.weights / 8)
    assert "content" not in figures


def test_channels_of_no_bits_cost_nothing() -> None:
    generator = np.random.default_rng(0)
    some = codes_on_grid(generator, (4, 500), 0, (3, 3, 3, 3), rise=True)
    more = np.concatenate([some, np.zeros((2000, 500), np.int8)])
    sizes = [archive(model_of({"w": Weight(w, (3,) * 4 + (0,) * (len(w) - 4))})).code_bytes for w in (some, more)]
    assert sizes[0] == sizes[1]


def test_neighbours_in_a_kernel_help() -> None:
    """Smooth kernels take far less than the frequencies of their codes."""
    values = np.random.default_rng(0).standard_normal((64, 64, 1, 1)) + 0.3 * np.random.default_rng(1).standard_normal(
        (64, 64, 3, 3)
    )
    codes = np.clip(np.rint(values * 5), -15, 15).astype(np.int8)
    made = archive(model_of({"w": Weight(codes, (5,) * 64)}))
    assert made.code_bytes < 0.75 * made.ideal_bytes


def test_an_old_archive_is_read() -> None:
    """Made when the format was new: whoever cannot read it must give the format another version."""
    restored = restore(b85decode(GOLDEN))
    assert hashlib.sha256(restored).hexdigest() == GOLDEN_DIGEST
    assert restored == small_model(7).SerializeToString()


def test_a_float_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"digits_cnn.onnx: onnx-cbq did not make this model; archive takes"):
        archive(DIGITS_MODEL)


def test_other_weights_than_planned_are_refused() -> None:
    model = small_model()
    del model.graph.initializer[0]
    with pytest.raises(ModelError, match="are not those of the plan"):
        archive(model)


def test_a_plan_without_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="are not those of the plan"):
        archive(model_of({}))


def test_weights_in_another_file_are_refused(tmp_path: Path) -> None:
    onnx.save(small_model(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(ModelError, match=r"has its weights in another file; archive takes a model that is one file"):
        archive(tmp_path / "m.onnx")


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"this is no model")
    with pytest.raises(ModelError, match=r"m.onnx: not an ONNX model \("):
        archive(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no such file; check its path"):
        archive(tmp_path / "none.onnx")
    with pytest.raises(ModelError, match="expected a file, got a folder"):
        restore(tmp_path)
    with pytest.raises(ConfigError, match="--coder: expected ans or huffman, got 'zip'"):
        archive(small_model(), "zip")
    with pytest.raises(OutputError, match="does not exist"):
        archive(small_model()).save(tmp_path / "no" / "m.cbqz")


def test_a_model_that_would_pass_for_hostile_is_refused() -> None:
    codes = np.zeros((2, 4_000_000), np.int8)
    with pytest.raises(ModelError, match="cannot be archived: the model is so repetitive"):
        archive(model_of({"w": Weight(codes, (0, 0))}))


def assert_refused(content: bytes, match: str | None = None) -> None:
    """One line, soon, without much memory."""
    tracemalloc.start()
    began = time.perf_counter()
    try:
        with pytest.raises(ArchiveError, match=match) as raised:
            restore(content)
        assert "\n" not in str(raised.value)
        assert str(raised.value).startswith("the archive: cannot be restored: ")
        assert time.perf_counter() - began < 10
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "it does not begin with CBQZ"),
        (b"CBQ", "it does not begin with CBQZ"),
        (b"CBQZ", "it is cut short"),
        (DIGITS_MODEL.read_bytes(), "it does not begin with CBQZ"),
        (b"CBQZ\x02" + bytes(100), "format version 2, and this onnx-cbq reads 1"),
        (SMALL[:-1], "its checksum is wrong"),
        (SMALL + b"\0", "its checksum is wrong"),
        (sealed(b"CBQZ\x01\x02" + bytes(100)), "it names coder 2"),
        (sealed(b"CBQZ\x01\x00" + write_varints([1 << 34, 0, 0, 0, 0, 0]) + bytes(36)), "claims to restore to"),
        (sealed(b"CBQZ\x01\x00" + write_varints([1 << 30, 0, 0, 0, 0, 0]) + bytes(36)), "claims to restore to"),
        (sealed(b"CBQZ\x01\x00" + write_varints([9, 1 << 30, 0, 0, 0, 0]) + bytes(36)), "claims a section"),
        (sealed(b"CBQZ\x01\x00" + write_varints([9, 0, 0, 1 << 30, 0, 0]) + bytes(36)), "it is cut short"),
        (sealed(b"CBQZ\x01\x00" + b"\xff" * 40), "a size is too large"),
    ],
)
def test_what_is_no_archive_is_explained(content: bytes, match: str) -> None:
    assert_refused(content, match)


def test_every_bit_counts() -> None:
    for place in range(len(SMALL)):
        damaged = bytearray(SMALL)
        damaged[place] ^= 1 << place % 8
        assert_refused(bytes(damaged))


def test_every_cut_is_found() -> None:
    for size in range(0, len(SMALL), 7):
        assert_refused(SMALL[:size])


@pytest.mark.parametrize("coder", CODERS)
def test_damage_behind_a_right_checksum_does_no_harm(coder: str) -> None:
    """What someone with bad intentions would send: the checksum holds, the content does not."""
    generator = np.random.default_rng(SEED)
    original = small_model().SerializeToString()
    body = archive(small_model(), coder).content[:-4]
    for _ in range(400):
        damaged = bytearray(body)
        for place in generator.integers(4, len(body), generator.integers(1, 4)):
            damaged[place] = generator.integers(256)
        assert_refused_or_same(sealed(bytes(damaged)), original)


def assert_refused_or_same(content: bytes, original: bytes) -> None:
    """A byte that says nothing, such as padding, may be anything."""
    try:
        assert restore(content) == original
    except ArchiveError:
        assert_refused(content)


SECTIONS = ("frame", "parameters", "numbers", "words")


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("section", SECTIONS)
def test_damaged_sections_do_no_harm(section: str, coder: str) -> None:
    """The sections are changed before they are packed, so that what reads them sees the damage."""
    generator = np.random.default_rng(SEED)
    original = small_model().SerializeToString()
    whole = unpack(archive(small_model(), coder).content)
    for i in range(120):
        content = bytearray(getattr(whole, section))
        for place in generator.integers(0, len(content), generator.integers(1, 4)):
            content[place] = generator.integers(256)
        if i % 4 == 1:
            del content[int(generator.integers(len(content))) :]
        if i % 4 == 2:
            content += bytes(generator.integers(0, 256, 9).tolist())
        fields = {**vars(whole), section: bytes(content)}
        assert_refused_or_same(pack(type(whole)(**fields)).content, original)


@pytest.mark.parametrize(
    ("place", "replacement", "match"),
    [
        (b'"layers": {', b'"layers":[{', "the plan in the model's metadata is damaged"),
        (b'"conv": ["Conv", [12, 5', b'"conv": ["Conv", [13, 5', "its weights are not those of its plan"),
        (b"onnx_cbq", b"onnx_abc", "onnx-cbq did not make this model"),
    ],
)
def test_another_plan_does_no_harm(place: bytes, replacement: bytes, match: str) -> None:
    whole = unpack(SMALL)
    assert whole.frame.count(place) == 1
    assert_refused(
        pack(type(whole)(**{**vars(whole), "frame": whole.frame.replace(place, replacement)})).content, match
    )


def test_the_wrong_digest_is_found() -> None:
    whole = unpack(SMALL)
    assert_refused(pack(type(whole)(**{**vars(whole), "digest": bytes(32)})).content, "SHA-256 differs")


@given(st.binary(max_size=300))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_random_bytes_are_refused(content: bytes) -> None:
    for candidate in (content, sealed(b"CBQZ\x01\x00" + content)):
        with pytest.raises(ArchiveError):
            restore(candidate)


def test_what_may_be_restored_is_bounded_by_what_there_is() -> None:
    assert largest_file(0) == 1 << 20
    assert largest_file(100_000) < 128 << 20


def test_real_models(real_data: Callable[[str], Path]) -> None:
    """Three bits and eight; ResNet-20 within a second, five million weights a second."""
    for name, bits, most in (("resnet20_cifar10", 3, 0.32), ("vgg_small_cifar10", 3, 0.34), ("lenet_mnist", 8, 0.93)):
        proto = quantize_without_data(real_data(f"{name}.onnx"), DataFreeConfig(bits)).model.to_proto()
        made = archive(proto)
        assert len(made.content) < most * made.model_bytes
        assert made.code_bytes < made.ideal_bytes
        seconds = min(_seconds_of_restore(made, proto.SerializeToString()) for _ in range(3))
        assert seconds < 1
        if made.weights > 1_000_000:
            assert made.weights / seconds > 5e6


def _seconds_of_restore(made: Archive, expected: bytes) -> float:
    began = time.perf_counter()
    restored = restore(made.content)
    seconds = time.perf_counter() - began
    assert restored == expected
    return seconds


GOLDEN_DIGEST = "daaa4fdd7d719ac3407e4095f89aa991544de984f2355e964846146ac904bb71"
GOLDEN = (
    "Lqbtn0RYbmn*)ylgaToO0RRB~2LQAQ2o5@h2?`Jj0eBJtc_Ii&WMyu2X>@rK0cR?)1PBZW1xlO*D*pip6bK9iW@GRHDm@4c5CJeM"
    "4@v|oKL>DfZ)A02bV@KPJO~UB20{cF3;-"
    "%42m}ZP1$1Fz6j~Gy3JnMW5(x?e5&=#M0tf+Oc@c850i^*TARr(hARr)HF)}P5H7p=AT`(~+Gc+|eH#i_5AX_pqGJSm}C_n;3jL="
    "LEfQX1_V;T;v!xK-~>cBGlx|gmM@*o&^!L_~C24gJ<*!NWPEOiys?VeU#dZW=aaPPERC}?O#{#7W$81iWNg-tMb!b9nmhU-"
    "8<@bYnZ*zdux8(i^2EC2xI0szuQ6dRzc1E{F~y{aml0_5hFS3dvue|P2By|<J}rkme?_3FI;=be5OSper2<6=_J#f-"
    "8+U#~$|0#htKtnmbGVz{j02r1&hdbr3F-gm<<GYA6^0Ep1G3}yiY0s{c3Iy0UTO1xil`y)+l0K1Qv=3-"
    "%cxw^S;O6LIk5p3#K5ZydjEgpaS06srIK0iM`KR-"
    "V|KRo~dmSH&ThIA3~O*uCJ1o99J`uqk92M_NP009300RR6000030000300096000000{{R30{{8^}0{{a7|NjF4{{sL10{s9Avpb"
    "uTDhWX8I%w!aRJ;wmoiOCr(L#^s(Pc{>{oH>#i?ClZ0LfKuQaB<DZ$X>H{VHm)#0habWKR}LWbOu?@~c}-gx-"
    "X$Y5FN{{@`T4SPoYNUI(>z=q<_o2tBm7O-J``n(18a+%CtNBlfAE6q0p()a}qc$ZfEcZQ>EEI3ra;AE17T>kC*_fOs_%-"
    "fdjVs=yv`H`!2gA-sScN}W6)hz)zV2N(?pm^>;OkX5wKdslv>DICKM@?Mn+HPOJ!oSQdejU1o$NR19+JMf^Oz{8%fJydM2@yI_YH"
    "49i`p<bX^f@u!E{v<qXTT{tGK@?ub(atoa3N?ZKf@yYYT)Il+c2>pnKI75DL@;(EG;=us2;SN^yRuC$<dZQU*CdfeQL0S@(iOy#`"
    "CZkF(&U^wMqO=mw>1FvOhwWd%W;bB`2z~isi*2l9B&{n9^eMrs!!d0ahk(Gen6G@nyHagP3eU4HC~oTMigqv1iNu{kLlR"
)
