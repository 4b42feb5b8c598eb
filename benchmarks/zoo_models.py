"""Make models as exporters write them, with random weights: what is installed is used, what is missing is named.

python benchmarks/zoo_models.py FOLDER [torchvision] [sklearn] [keras] [tflite] [paddle] [onnxruntime]

Exporters do not agree about versions of what they need, so each may be run in an environment of its own. A model is
NAME.onnx, with samples beside it as NAME.npz: an array for each input, and labels `y`. "onnxruntime" writes what its
optimizer makes of the models that are already there.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, COUNT = 10, 32
# Smallest sizes that each takes.
TORCHVISION = {
    "alexnet": 224,
    "vgg11": 224,
    "resnet18": 64,
    "squeezenet1_0": 64,
    "densenet121": 64,
    "inception_v3": 96,
    "googlenet": 64,
    "shufflenet_v2_x0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "resnext50_32x4d": 64,
    "wide_resnet50_2": 64,
    "mnasnet0_5": 64,
}


def images(*shape: int, classes: int = CLASSES) -> tuple[Any, Any]:
    """Smooth patterns, one for each class, under noise."""
    random = np.random.default_rng(0)
    labels = np.arange(COUNT) % classes
    patterns = np.cumsum(np.cumsum(random.standard_normal((classes, *shape)), axis=-1), axis=-2)
    patterns /= patterns.std(axis=(1, 2, 3), keepdims=True)
    return (patterns[labels] + 0.5 * random.standard_normal((COUNT, *shape))).astype(np.float32), labels


def save_samples(folder: Path, name: str, labels: Any, **inputs: Any) -> None:
    """NAME.npz."""
    arrays: dict[str, Any] = {**inputs, "y": labels}
    np.savez(folder / f"{name}.npz", **arrays)


def torchvision_models(folder: Path) -> None:
    """The classic architectures, from both of torch's exporters."""
    torch, models = import_torchvision()
    for name, size in TORCHVISION.items():
        torch.manual_seed(0)
        extra = {"init_weights": False, "aux_logits": False} if name in ("inception_v3", "googlenet") else {}
        net = getattr(models, name)(weights=None, num_classes=CLASSES, **extra)
        x, y = images(3, size, size)
        # Running statistics of what really comes, as training leaves them; a net that was never trained has none.
        net.train()
        with torch.no_grad():
            for _ in range(20):
                net(torch.from_numpy(x))
        net.eval()
        for exporter, settings in (
            ("torchscript", {"dynamo": False, "dynamic_axes": {"x": {0: "n"}}, "input_names": ["x"]}),
            ("dynamo", {"dynamo": True, "dynamic_shapes": ({0: "n"},), "input_names": ["x"], "external_data": False}),
        ):
            target = folder / f"torchvision_{name}_{exporter}.onnx"
            if not target.exists() and _try(
                target.stem, partial(torch.onnx.export, net, (torch.from_numpy(x[:2]),), target, **settings)
            ):
                save_samples(folder, target.stem, y, x=x)


def import_torchvision() -> tuple[Any, Any]:
    """Torch and torchvision's models; its operators in C++, which none uses, may be built for another torch."""
    import torch

    register_fake = torch.library.register_fake

    def lenient(*arguments: Any, **settings: Any) -> Callable[[Any], Any]:
        inner = register_fake(*arguments, **settings)

        def register(function: Any) -> Any:
            try:
                return inner(function)
            except RuntimeError:
                return function

        return register

    torch.library.register_fake = lenient
    from torchvision import models

    torch.library.register_fake = register_fake
    return torch, models


def sklearn_models(folder: Path) -> None:
    """What skl2onnx writes: nets, pipelines, linear models, trees, with ZipMap and without."""
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler, StandardScaler

    random = np.random.default_rng(0)
    labels = np.arange(200) % 4
    x = (random.standard_normal((4, 12))[labels] + 0.7 * random.standard_normal((200, 12))).astype(np.float32)
    words = np.array(["ant", "bee", "cat", "dog"])[labels]
    net = {"hidden_layer_sizes": (24, 16), "max_iter": 30, "random_state": 0}
    fitted = {
        "mlp": (MLPClassifier(**net), labels),
        "mlp_tanh": (MLPClassifier(activation="tanh", **net), labels),
        "mlp_logistic": (MLPClassifier(activation="logistic", **net), labels),
        "mlp_words": (MLPClassifier(**net), words),
        "mlp_binary": (MLPClassifier(**net), labels % 2),
        "scaled_mlp": (make_pipeline(StandardScaler(), MLPClassifier(**net)), labels),
        "minmax_mlp": (make_pipeline(MinMaxScaler(), MLPClassifier(**net)), words),
        "logistic_regression": (LogisticRegression(max_iter=50), labels),
        "random_forest": (RandomForestClassifier(5, random_state=0), labels),
        "boosted": (GradientBoostingClassifier(n_estimators=3, random_state=0), labels),
    }
    for name, (model, target) in fitted.items():
        model.fit(x, target)
        for zipmap in (True, False):
            whole = f"sklearn_{name}{'_zipmap' if zipmap else ''}"
            options = {id(model): {"zipmap": zipmap}}
            proto = to_onnx(model, x[:1], options=options)
            (folder / f"{whole}.onnx").write_bytes(proto.SerializeToString())
            save_samples(folder, whole, labels % 2 if name == "mlp_binary" else labels, X=x)


def keras_nets() -> dict[str, Any]:
    """Small Keras nets: a CNN, separable convolutions, recurrence, dense layers."""
    import tensorflow as tf

    layers = tf.keras.layers
    cnn = tf.keras.Sequential(
        [
            tf.keras.Input((32, 32, 3)),
            layers.Conv2D(8, 3, padding="same", activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(),
            layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(6.0),
            layers.Flatten(),
            layers.Dropout(0.2),
            layers.Dense(CLASSES, activation="softmax"),
        ]
    )
    separable = tf.keras.Sequential(
        [
            tf.keras.Input((32, 32, 3)),
            layers.ZeroPadding2D(1),
            layers.Conv2D(8, 3, strides=2, activation="swish"),
            layers.DepthwiseConv2D(3, padding="same"),
            layers.LeakyReLU(),
            layers.SeparableConv2D(16, 3, padding="same", activation="elu"),
            layers.AveragePooling2D(2),
            layers.UpSampling2D(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(CLASSES),
        ]
    )
    mobile = tf.keras.applications.MobileNetV2((32, 32, 3), alpha=0.35, weights=None, classes=CLASSES)
    recurrent = tf.keras.Sequential(
        [tf.keras.Input((12, 6)), layers.LSTM(8, return_sequences=True), layers.GRU(8), layers.Dense(CLASSES)]
    )
    return {"cnn": cnn, "separable": separable, "mobilenet_v2": mobile, "lstm_gru": recurrent}


def _keras_samples(net: Any) -> tuple[Any, Any]:
    shape = tuple(net.input_shape[1:])
    if len(shape) == 3:
        return images(*shape)
    labels = np.arange(COUNT) % CLASSES
    return np.random.default_rng(0).standard_normal((COUNT, *shape)).astype(np.float32), labels


def keras_models(folder: Path) -> None:
    """What tf2onnx makes of Keras nets."""
    import tensorflow as tf
    import tf2onnx

    for name, net in keras_nets().items():
        x, y = _keras_samples(net)
        whole = f"keras_{name}"
        function = tf.function(lambda value, net=net: net(value, training=False))
        signature = [tf.TensorSpec((None, *x.shape[1:]), tf.float32, name="x")]
        target = str(folder / f"{whole}.onnx")

        def write(function: Any = function, signature: Any = signature, target: str = target) -> None:
            tf2onnx.convert.from_function(function, signature, opset=15, output_path=target)

        if _try(whole, write):
            save_samples(folder, whole, y, x=x)


def tflite_models(folder: Path) -> None:
    """What tf2onnx makes of TFLite files: float, float16 and dynamic-range."""
    import tensorflow as tf
    import tf2onnx

    for name, net in keras_nets().items():
        if name == "lstm_gru":
            continue
        x, y = _keras_samples(net)
        for kind in ("float", "float16", "dynamic"):
            converter = tf.lite.TFLiteConverter.from_keras_model(net)
            if kind != "float":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if kind == "float16":
                converter.target_spec.supported_types = [tf.float16]
            whole = f"tflite_{name}_{kind}"
            with tempfile.TemporaryDirectory() as scratch:
                source = Path(scratch) / "net.tflite"

                def write(converter: Any = converter, source: Path = source, whole: str = whole) -> None:
                    source.write_bytes(converter.convert())
                    tf2onnx.convert.from_tflite(str(source), opset=15, output_path=str(folder / f"{whole}.onnx"))

                if not _try(whole, write):
                    continue
            save_samples(folder, whole, y, **{_input_name(folder / f"{whole}.onnx"): x})


def _input_name(path: Path) -> str:
    import onnx

    return str(onnx.load(path).graph.input[0].name)


def paddle_models(folder: Path) -> None:
    """What paddle2onnx writes."""
    import paddle

    nets = {
        "mobilenet_v3": paddle.vision.models.mobilenet_v3_small(num_classes=CLASSES),
        "resnet18": paddle.vision.models.resnet18(num_classes=CLASSES),
        "squeezenet": paddle.vision.models.squeezenet1_1(num_classes=CLASSES),
        "shufflenet": paddle.vision.models.shufflenet_v2_x0_5(num_classes=CLASSES),
    }
    x, y = images(3, 64, 64)
    for name, net in nets.items():
        net.eval()
        whole = f"paddle_{name}"

        def write(net: Any = net, whole: str = whole) -> None:
            spec = [paddle.static.InputSpec([None, 3, 64, 64], "float32", "x")]
            paddle.onnx.export(net, str(folder / whole), input_spec=spec, opset_version=13)

        if _try(whole, write):
            save_samples(folder, whole, y, x=x)


def optimized_models(folder: Path) -> None:
    """What onnxruntime's optimizer writes, basic and extended, for the models of the folder."""
    import onnxruntime

    levels = {
        "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    }
    for path in sorted(folder.glob("*.onnx")):
        if path.stem.startswith("optimized_"):
            continue
        for name, level in levels.items():
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level, options.log_severity_level = level, 4
            whole = f"optimized_{name}_{path.stem}"
            options.optimized_model_filepath = str(folder / f"{whole}.onnx")
            if _try(whole, partial(onnxruntime.InferenceSession, path.read_bytes(), options)):
                (folder / f"{whole}.npz").write_bytes(path.with_suffix(".npz").read_bytes())


def _try(name: str, write: Callable[[], Any]) -> bool:
    """Whether an exporter could write a model; what it says otherwise is shown."""
    started = time.monotonic()
    try:
        write()
    except Exception as error:  # noqa: BLE001  # an exporter's fault is no reason to stop
        print(f"{name}: the exporter failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}")
        return False
    print(f"{name}: {time.monotonic() - started:.1f} s")
    return True


MAKERS: dict[str, Callable[[Path], None]] = {
    "torchvision": torchvision_models,
    "sklearn": sklearn_models,
    "keras": keras_models,
    "tflite": tflite_models,
    "paddle": paddle_models,
    "onnxruntime": optimized_models,
}


def main() -> None:
    """Run the makers that are named, or all."""
    warnings.simplefilter("ignore")
    folder, *names = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name in names or MAKERS:
        try:
            MAKERS[name](Path(folder))
        except ImportError as error:
            print(f"{name}: missing here: {error}")


if __name__ == "__main__":
    main()
