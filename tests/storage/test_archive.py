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
    ArchiveError,
    ConfigError,
    DataFreeConfig,
    ModelError,
    OutputError,
    archive,
    quantize_without_data,
    restore,
)
from onnx_cbq.graph.load import load
from onnx_cbq.storage.coding.container import MAGIC, largest_file, pack, unpack, write_varints
from onnx_cbq.system.allowance import FACTOR
from tests.conftest import DIGITS_MODEL
from tests.storage.quantized import Weight, codes_on_grid, model_of

CODERS = ("ans", "huffman")
SEED = 20


def small_model(seed: int = SEED) -> onnx.ModelProto:
    """A layer of each kind: kernels and none, channels on either axis, all widths, zeros."""
    generator = np.random.default_rng(seed)
    widths = (0, 1, 2, 3, 4, 5, 6, 7, 8, 3, 3, 3)
    kernels = codes_on_grid(generator, (12, 30, 3, 3), 0, widths, rise=True)
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
    assert made.weights == 12 * 270 + 240
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


@pytest.mark.parametrize("scheme", ["mse", "log"])
def test_packed_weights_are_refused(scheme: str) -> None:
    """By name, codes and positions in a table alike: "not those of the plan" would be true, and of no help."""
    made = {
        storage: quantize_without_data(DIGITS_MODEL, DataFreeConfig(4, scheme, storage=storage)).model.to_proto()
        for storage in ("packed", "int8")
    }
    with pytest.raises(ModelError, match=r"was written with --storage packed; archive takes .*: quantize again with"):
        archive(made["packed"])
    assert archive(made["int8"]).weights
    del made["int8"].graph.initializer[:]
    with pytest.raises(ModelError, match="are not those of the plan"):
        archive(made["int8"])


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
        (b'"conv": ["Conv", [12, 30', b'"conv": ["Conv", [13, 30', "its weights are not those of its plan"),
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


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        ({"archive._LEAST_CODES": 100, "archive._CODES_PER_BYTE": 0}, r"it has 3\d+ codes, more than 100 in \d+ bytes"),
        (
            {"archive._LEAST_PIECES": 10, "archive._BYTES_PER_PIECE": 10**6},
            r"it has \d+ pieces of codes, more than 10",
        ),
        ({"coding.wire._MOST_FIELDS": 20}, "more than 20 fields"),
        ({"metadata._LARGEST_PLAN": 100}, r"the plan in the model's metadata has \d+ bytes, expected at most 100"),
    ],
)
def test_what_decoding_takes_is_counted_before(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], match: str
) -> None:
    """A few hundred kilobytes could keep a processor busy for minutes; the environment says if they may."""
    for name, limit in limits.items():
        monkeypatch.setattr(f"onnx_cbq.storage.{name}", limit)
    assert_refused(SMALL, match)
    with pytest.raises(ModelError):  # nor is an archive made that would not be read
        archive(small_model())
    monkeypatch.setenv(FACTOR, "1000")
    assert restore(SMALL) == small_model().SerializeToString()


def test_channels_of_zeros_take_no_memory_but_their_own() -> None:
    """They are most of a net that was cut down, and what predicts codes need not look at them."""
    codes = np.zeros((2000, 500), np.int8)
    codes[:2] = codes_on_grid(np.random.default_rng(0), (2, 500), 0, (3, 3), rise=True)
    made = archive(model_of({"w": Weight(codes, (3, 3) + (0,) * 1998)})).content
    tracemalloc.start()
    try:
        restore(made)
        # int16 by position, in order, and as bytes a few times
        assert tracemalloc.get_traced_memory()[1] < 10 * codes.size
    finally:
        tracemalloc.stop()


def test_real_models(real_data: Callable[[str], Path]) -> None:
    """Three bits and eight, on weights that were trained. How long it takes is for `benchmarks/bytes.py` to say."""
    for name, bits, most in (("resnet20_cifar10", 3, 0.32), ("vgg_small_cifar10", 3, 0.34), ("lenet_mnist", 8, 0.93)):
        proto = quantize_without_data(real_data(f"{name}.onnx"), DataFreeConfig(bits)).model.to_proto()
        made = archive(proto)
        assert len(made.content) < most * made.model_bytes
        assert made.code_bytes < made.ideal_bytes
        assert restore(made.content) == proto.SerializeToString()


GOLDEN_DIGEST = "1f86a67299c0e3c1598d69ffc3a57b26d2d3b7e83c20556c900d61ac14972578"
GOLDEN = (
    "Lqbtn0RY?|oCA*mg#u!Q0RR962msUx2o5@t9tsc&0eBJtc_Ii&WMyu2X>@rK0cR?`83+sr9!jVgD*pip6bK9u140C5WAFhgJqQdC"
    "0Wc~LN(3rD2XJz4WOZY7N-!!s2n-MgLIfBC3;-"
    "%42m}ZP1$1Fz6j~Gy3JnMW5(x?e5&=#M0tf+Oc@c860j2>UARr(hARr)HF)}P5Gca8+F)}kWH8wXmARr)HGBGlJeI_VC#E>#F(*u"
    "Brh-hOP4voSuk63kKH3Q4bN0l{rj=@0%*YC9!jI}|)+EeYb)KpNrds=a6jYh-"
    "3z4LFOL_=HTO@%RxL1s`Q49p$FcY5vNJWx<vJ#YVmVH>#O&sYEe?E(Oz#S<K$s{{Z4W4``>4+1c+_EkOR_4j(3y^+0lk}?JV|6f&"
    "|>QtwvI|lJ^0VuBsL}~4FjQKsz)-k5+8duvAFK&vZJ#-NdZ4in$upS;Vg#-"
    "Wq5w12axMcum0R#dA03)af?j@(d%BaZkpltx<@(?Td$SgH!S`6yv01sc)R624Hh!ZUdN&5glK0ZG`KR-"
    "S`K0iM_0JpG>T6csHae5J{<NyZv_x1Ph^91z~@eTk0|NsC0|Nj900RI300RR90|Ns90{{a6000II2009I30RjX60RRF20R#O5{tC"
    "B!&$^q<N|jaq@&r2qY8@I=^;<PJ(lb>`v~U(>jnqjbS$>L#A3ukJ@R(~&8Hob-y1G^=xMgMmruv!{QyE{~k9VTd`x7p316nst>1-"
    "b5VM?R*=(2D2@SgW~T)S2EtEjXC1wN@U=cIw(^99yPvhiwAT;@}K?!b9E<w1*m4?SnoYG&ZGbc@f(3^(XM7r4<H)F33M$p0f3A7)"
    "jcKbON5U`*-"
    "~?W#u@r6o~g>6<TO3H$t5fffIJ6+U%d6JQ^pp2dMbvjMK^QyEb7g{krM#B|rk+z!z*xlk|*zU@Jmh8KluG<8}QnT4(^Cd#P*DLpY"
    "qF-RO?y9VbU@sny0j!R~)&BL1NFu|a!g$I^O>H0vKChutkj(GCI`7{!yWKmzLRbeohAnMty*X2u4kq!YGR)L`+y$kOTPffn+6y)z"
    ">2ggpfiyeRH?wC1&H9jKT@gU%AK|KR?vQrP480`=a<PfCC1RO~+IhVjNZ;}w@7Ab6~{4<@TBsOmwdmplmS<<1!fS}X{E1@vzDs9H"
    "hxDsWnf<(;utS-(%t|ao9`l+K^)ncQ=D54@ZXpKq5JU9;J<v*-"
    "MF?@qSc#5P|ZmEV#ihCkX{f<vj8FtGG_=b_&9_wiR?Ot*J+bO;g8k@}$=!8m%081vC`~ho(FkLaJ-"
    "+v;%Qk_cVr2eN65W@KEtrRe>{#9c3Ggx1y^Mf*45OL|FkM){~nt?CQJr*&qhI#udH`jl+IQq_lOWU=aG8-"
    "a=!iF&Bh=TYf)jP4!8N=;eajPO0f20RUJJ_RSLoHYBI!Zr<Y*;%yom9^XisiL-MxS{#;C}Av@c5S*CQeVCqVIymw^!>ote&K;wEX"
    "CsO0=ch_qacdNH~NQimXZF$({o{;Gz^Za1*;1eZ0tV<YC{?27E?t@Dm$HD^E41mAG6IqV7eIFMin~AovM|A#zE5mPB#K;VEAS;4$"
    ";g&1_J%G&Jt3NrN8m%|<W^a6BBRoe{<(FE*9b3i-ctXnb>*fhYPD)4k4}v>3xfdp%8Ws5a5IBs~K_<-"
    "No5Tda{g@5rW`+bnlKAEF{PT;0I%#u}f{q4=&Bvd6h}-"
    "x!uC4wW5c9mBzDO0F3iIpE!VE+5FZ8>bYnXy~M0*>y`;NDlliLmFvv_+)>2Ibgun@c*1#ZEi|fe=FBQgqD=Nq9tixwR8CS*iYo$p"
    "pG6aOhFKs(Mct5#^fO{!2rS6K(QLGZt5XRuCTq9EmFj+FCsm&jA$vqtua8%+ispvS42B|&&%3CU;G$?Yel^djYeGfPy<LHf!cNPR"
    "qB!qmUgpmU+^(Xn+FDk7Ep^A-@u}XT)uf}JYMz2!RQ3lGs9tJ&+SabIC$)QWDs$h^J`kEwobVS5{=KTJwvS~@N-"
    "4zlW_85Tq>6Ju469C9aBXOxD-ccqW`Lwl64>;%#^-rfAmON$?mmmZ_Bz*-"
    "W@faLBG&}<PEN*V$gUxfIpi;`I%C6!6yG(3_EsowaUYq(lJBWXj76O&KP;#r27<eGg3erj@V^%f(^e%i~J6HYm?xSS_RD1Kh{MS7"
    "3K!ZyJr@a0OL<ztI|zoWY{w<?I(<#ZOi@j$y1QFQTSX;1zKph0E6j7G-"
    "htC=J#MY$@du4^N6~4OUM6J1=3*x&xxaA{tlF_)U1(j$L$bA!i}))wa4D<r!BFh*g|Ztir(;8_9$Kz3bsxm(jAs}lo}SS#KP_*ui"
    "B~o`)Y{g1Wuc*<-0xcN`w9I>gK6b=l`~4dwunNXcg43oRai?b;KP;&$9fADcCN%HCODH3m>p9kR4Oljv@R{?~#8u8LoZ-Ul;GGS!"
    "M-5)2w-DZns5B-`S$J%bA(GhEj>JbQ}~yxcMebI|@BBRaPa-@Q1ORyle0qSias-"
    "L@|n_kdiT@uGaCv|FSsxh3DytNJ#K(AsRJNIIh{+PBS0LY7>{SN=GL581qrJm+rPTbw^O*2GDI{Ly1!SlNQ_4xTY`I-"
    "rS!Bv7tH>l(V0hu$RJY?c!(^7Nv$zt+g@VFW4f<sK}@^*d_sX0w0E^a+$#6!C8%I|HGwwCeqWl=sX}*Y>*9MtQ40ecrp|Kb^"
)


def test_an_archive_given_as_a_model_says_what_it_is(tmp_path: Path) -> None:
    """By the same first bytes, which `graph.load` cannot import."""
    (tmp_path / "a.cbqz").write_bytes(MAGIC + bytes([255] * 20))
    with pytest.raises(ModelError, match="an archive; make it a model with onnx-cbq restore"):
        load(tmp_path / "a.cbqz")
